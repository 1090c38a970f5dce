# ---
# jupyter:
#   jupytext:
#     formats: notebooks///ipynb,notebooks/scripts///py:percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 3 · One encoder under attack
#
# Freezes the encoder, fits a linear head on clean ECGs (protocol `slf`; arms that learn a classifier
# keep the head they were trained with), or on attacked ones (`alf`), or trains all weights by TRADES
# (`aff`), on another data set where the protocol names one (`slf@mitdb`: transfer). Then it attacks the
# whole model with perturbations of at most
# ε mV on the raw signal. AUROC is reported for one perturbation against all labels (*shared*, the
# realistic one) and for one perturbation per label (*label*, the exact pairwise worst case up to
# the optimiser).

# %% tags=["parameters"]
study = "params/quick.yaml"
dataset = "builtin"
arm = "rocl-ip-hn"
seed = 0
protocol = "slf"

# %%
import json

import pandas as pd
from IPython.display import display

from ecgstudy import diagnostics, ecg_paper, figures, scores, tables
from ecgstudy.factors import get_arm
from ecgstudy.robustness import evaluate
from ecgstudy.study import ENSEMBLE, Paths, Run, load_study
from ecgstudy.workflow import prepared_records

plan = load_study(study)
paths, pretrained = Paths(plan.study), Run(plan, dataset, arm, seed)
run, folder = pretrained.tested_on(protocol), paths.protocol(dataset, arm, seed, protocol)
records = prepared_records(plan, run.dataset, paths)
synthetic = bool(records.card.get("synthetic"))

# %%
found = evaluate(run, records, folder, protocol)
stored = scores.read_scores(paths, [pretrained], [protocol])

# %% [markdown]
# ## Clean and robust AUROC
#
# Macro average over the classes. The headline ε is the budget of the study's primary outcome.

# %%
robust = tables.robust_auroc(stored, plan.statistics.confidence)
robust = robust[robust["seed"] == seed].drop(columns=["dataset", "arm", "seed", "protocol"])
print(f"headline: {ENSEMBLE} at {run.headline_epsilon_mv:g} mV")
display(robust.style.hide().format(precision=3))

# %%
curve = robust[robust["attack"].isin(["none", ENSEMBLE])]
views = {"auroc_shared": "shared", "auroc_label": "label"}
curve = curve.rename(columns=views).melt(["epsilon_mv"], list(views.values()), "view", "auroc").dropna()
figures.stamped(figures.epsilon_curve(curve), synthetic)

# %% [markdown]
# ## By class, and by attack at the headline ε

# %%
each = tables.per_class(stored)
each = each[each["attack"].isin(["none", ENSEMBLE])]
shown = each[each["epsilon_mv"].isin([0, run.headline_epsilon_mv]) & (each["seed"] == seed)]
display(shown.drop(columns=["dataset", "arm", "seed", "protocol"]).style.hide().format(precision=3))
at_headline = robust[robust["epsilon_mv"].isin([0, run.headline_epsilon_mv])]
figures.stamped(figures.attack_bars(at_headline.rename(columns={"auroc_shared": "auroc"})), synthetic)

# %% [markdown]
# ## Does the model only hide its gradients?
#
# A weak attack looks like a robust model. These checks look for that; a failure flags the model in
# every table and figure.

# %%
evaluation = json.loads((folder / "evaluation.json").read_text())
pd.DataFrame(evaluation["checks"]).style.hide().format(precision=4)

# %% [markdown]
# ## The most fragile ECG
#
# The test ECG whose true class loses most under the headline attack, among those that the model gets
# right, before and after.

# %%
if get_arm(arm).features is None:
    ecg = diagnostics.most_fragile(run, records, folder, found)
    display(ecg.scores.style.format(precision=2))
    title = f"record {ecg.record}, ε = {run.headline_epsilon_mv * 1000:g} µV"
    figure = ecg_paper.draw_ecg(ecg.signal, records.fs, records.leads, ecg.delta, title)
    display(figures.stamped(figure, synthetic))

# %% [markdown]
# ## What it cost

# %%
cost = {"attack steps per second": evaluation["attack_steps_per_second"], **evaluation["seconds"]}
cost |= {"peak memory (MB)": evaluation["peak_memory_mb"], "parameters": evaluation["parameters"]}
pd.DataFrame({"": cost}).style.format(precision=0)
