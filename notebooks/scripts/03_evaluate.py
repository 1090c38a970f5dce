# ---
# jupyter:
#   jupytext:
#     formats: notebooks///ipynb,notebooks/scripts///py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
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

from ecgstudy.analysis import scores, tables
from ecgstudy.evaluation import diagnostics
from ecgstudy.evaluation.runner import evaluate
from ecgstudy.plots import alt_texts, ecg_paper
from ecgstudy.plots import single_run as figures
from ecgstudy.plots.style import at_headline, corrupted
from ecgstudy.plots.tables_html import readable
from ecgstudy.pretraining.suffixes import get_arm
from ecgstudy.running.workflow import prepared_records
from ecgstudy.study import ENSEMBLE, Paths, Run, load_study

# %%
plan = load_study(study)
paths, pretrained = Paths(plan.study), Run(plan, dataset, arm, seed)
run, folder = pretrained.tested_on(protocol), paths.protocol(dataset, arm, seed, protocol)
records = prepared_records(plan, run.dataset, paths)
synthetic = bool(records.card.get("synthetic"))
headline = {run.dataset: run.headline_epsilon_mv}

# %%
found = evaluate(run, records, folder, protocol)
evaluation = json.loads((folder / "evaluation.json").read_text())
stored = scores.read_scores(paths, [pretrained], [protocol])

# %% [markdown]
# ## Clean and robust AUROC
#
# Macro average over the classes. The headline ε is the budget of the study's primary outcome.

# %%
robust = tables.robust_auroc(stored, plan.statistics.confidence)
robust = robust[robust["seed"] == seed].drop(columns="seed")
print(f"headline: {ENSEMBLE} at {run.headline_epsilon_mv:g} mV")
natural = robust["severity"].notna()
display(readable(robust[~natural].drop(columns=["dataset", "arm", "protocol"])))

# %%
curve = robust[robust["attack"].isin(["none", ENSEMBLE])]
views = {"auroc_shared": "shared", "auroc_label": "label"}
curve = curve.rename(columns=views).melt(["epsilon_mv", "masking_ok"], list(views.values()), "view", "auroc")
curve = curve.dropna(subset="auroc")
figures.stamped(figures.epsilon_curve(curve), synthetic, alt_texts.budget_curve(curve))

# %% [markdown]
# ## By class, and by attack at the headline ε

# %%
each = tables.per_class(stored)
each = each[each["attack"].isin(["none", ENSEMBLE])]
shown = at_headline(each[each["seed"] == seed], headline)
display(readable(shown.drop(columns=["dataset", "arm", "seed", "protocol"])))
bars = at_headline(robust, headline).rename(columns={"auroc_shared": "auroc"})
figures.stamped(figures.attack_bars(bars), synthetic, alt_texts.attack_bars(bars))

# %% [markdown]
# ## Under natural corruptions
#
# What recordings suffer without an adversary: macro AUROC by severity, 1 to 5.

# %%
if natural.any():
    table = corrupted(robust).query("attack != 'none'")
    table = table.pivot_table("auroc_shared", "attack", "severity").rename_axis("corruption")
    display(table.rename_axis(columns=None).reset_index().style.hide().format(precision=3, na_rep="–"))
else:
    print("none in this study: evaluation.corruptions in its params file is empty")
skipped = pd.DataFrame(evaluation["skipped"])
if len(skipped):
    display(skipped.style.hide().set_caption("not applicable to these records"))

# %% [markdown]
# ## Does the model only hide its gradients?
#
# A weak attack looks like a robust model. These checks look for that; a failure flags the model in
# every table and figure. Gradients that are exactly zero count by record: single samples behind
# ReLUs and max-pooling may have none while the record can still be attacked.

# %%
checks = pd.DataFrame(evaluation["checks"])
verdicts = {True: "not suspected", False: "suspected, † in every table", None: "not applicable"}
print("gradient masking:", verdicts[evaluation["masking_ok"]])
checks.style.hide().format(precision=4, na_rep="–")

# %% [markdown]
# ## The most fragile ECG
#
# The test ECG whose true class loses most under the headline attack, among those that the model gets
# right, before and after.

# %%
if get_arm(arm).features is None:
    ecg = diagnostics.most_fragile(run, records, folder, found)
    display(ecg.scores.reset_index().style.hide().format(precision=2))
    title = f"record {ecg.record}, ε = {run.headline_epsilon_mv * 1000:g} µV"
    figure = ecg_paper.draw_ecg(ecg.signal, records.fs, records.leads, ecg.deltas[ENSEMBLE], title)
    alt = alt_texts.ecg(ecg_paper.ecg_values(ecg.signal, records.fs, records.leads), title)
    display(figures.stamped(figure, synthetic, alt))

# %% [markdown]
# The same ECG under each attack: the perturbation, magnified as its label says, and its spectrum. The
# attacks are run again on a few records, with random starts of their own.

# %%
if get_arm(arm).features is None:
    figure = ecg_paper.draw_perturbations(ecg.signal, ecg.deltas, records.fs, records.leads, title)
    shown = {"ECG": ecg.signal, **ecg.deltas}
    values = {name: ecg_paper.ecg_values(x, records.fs, records.leads) for name, x in shown.items()}
    values = pd.concat(values, names=["attack"]).reset_index("attack")
    alt = alt_texts.perturbations(values, title)
    if (arm, seed) == (plan.showcase or plan.arms[-1], plan.seeds[0]):
        name = f"perturbations_{dataset}_{protocol.replace('@', '-to-')}"
        figures.save_figure(figure, paths.figures, name, values, alt=alt, synthetic=synthetic)
    display(figures.stamped(figure, synthetic, alt))

# %% [markdown]
# ## What it cost

# %%
cost = {"attack steps per second": evaluation["attack_steps_per_second"], **evaluation["seconds"]}
cost |= {"peak memory (MB)": evaluation["peak_memory_mb"], "parameters": evaluation["parameters"]}
pd.DataFrame({"": cost}).style.format(precision=0)
