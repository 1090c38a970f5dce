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
# # One encoder under attack
#
# Reads the stored scores of one run (`recompute=True` attacks again): macro AUROC,
# clean and under each attack of at most ε mV on the raw signal. `slf` fits a linear
# head to the frozen encoder, `alf` fits it to attacked ECGs, `aff` trains all weights
# by TRADES; `slf@mitdb` tests on another data set.
#
# **To change**: `arm`, `dataset`, `seed` and `protocol`, among those of the params
# file.
# **To try**: `arm = "supervised"`, whose AUROC falls fast.

# %% tags=["parameters"]
params = "params/quick.yaml"
dataset = "builtin"
arm = "rocl-ip-hn"
seed = 0
protocol = "slf"
recompute = False

# %%
import pandas as pd
from IPython.display import display

import ecgstudy as es

es.check_parameters(globals())
study = es.load_study(params)
run = study.run(dataset, arm, seed)
scores = run.evaluate(protocol, recompute=recompute)
evaluation = run.evaluation(protocol)

# %% [markdown]
# ## AUROC and ε
#
# One perturbation of a record against all its labels (the realistic one), or one for
# each label: the exact pairwise worst case, up to the optimiser.

# %%
es.plots.epsilon_curve(scores)

# %% [markdown]
# ## AUROC by attack
#
# At the headline ε, the budget of the study's primary outcome. The `ensemble` takes,
# for each record, the perturbation that costs most ranks.

# %%
robust = es.tables.robust_auroc(scores, study.statistics.confidence)
robust = robust[robust["seed"] == seed]
headline = es.select_headline(robust, study.headline)
headline = headline.sort_values("auroc_shared", ascending=False, kind="stable")
display(es.plots.attack_bars(headline))
es.show_table(
    headline,
    "attack epsilon_mv auroc_shared ci_low ci_high auroc_label n_records masking_ok",
)

# %% [markdown]
# ## AUROC by class

# %%
each = es.tables.per_class(scores)
each = es.select_headline(each[each["seed"] == seed], study.headline)
each = each[each["attack"].isin(["none", "ensemble"])]
es.show_table(
    each,
    "class attack epsilon_mv auroc auroc_label auprc positives patients masking_ok",
)

# %% [markdown]
# ## Natural corruptions
#
# What recordings suffer without an adversary: macro AUROC by severity, 1 to 5.

# %%
natural = robust[robust["severity"].notna()]
if len(natural):
    table = natural.pivot_table("auroc_shared", "attack", "severity").rename(
        columns="severity {:g}".format
    )
    display(es.show_table(table.rename_axis(columns=None).reset_index()))
else:
    print("none in this study: evaluation.corruptions in its params file is empty")
for skipped in evaluation["skipped"]:
    print("not applicable to these records:", *skipped.values())

# %% [markdown]
# ## Gradient-masking checks
#
# A weak attack looks like a robust model. These checks look for that; a failure flags
# the model with † in every table and figure. Gradients that are exactly zero are
# counted by record: single samples behind ReLUs and max-pooling may have none while the
# record can still be attacked.

# %%
verdicts = {True: "not suspected", False: "suspected", None: "not applicable"}
print("gradient masking:", verdicts[evaluation["masking_ok"]])
es.show_table(pd.DataFrame(evaluation["checks"]))

# %% [markdown]
# ## The most fragile ECG
#
# The test ECG whose true class loses most under the headline attack, among those that
# the model gets right, before and after.

# %%
if es.get_arm(arm).features is None:
    tested, ecg = run.records(protocol), run.most_fragile(protocol)
    title = f"record {ecg.record}"
    display(es.show_table(ecg.scores.reset_index()))
    display(
        es.plots.draw_ecg(
            ecg.signal, tested.fs, tested.leads, ecg.deltas["ensemble"], title
        )
    )

# %% [markdown]
# ## Its perturbations
#
# The same ECG under each attack, magnified as the labels say. The attacks are run again
# on a few records, with random starts of their own.

# %%
if es.get_arm(arm).features is None:
    figure = es.plots.draw_perturbations(
        ecg.signal, ecg.deltas, tested.fs, tested.leads, title
    )
    parts = {"ECG": ecg.signal, **ecg.deltas}
    parts = {
        name: es.plots.ecg_values(part, tested.fs, tested.leads)
        for name, part in parts.items()
    }
    values = pd.concat(parts, names=["attack"]).reset_index("attack")
    name = f"perturbations_{dataset}_{protocol.replace('@', '-to-')}"
    caption = "One ECG and its perturbation under each attack"
    shown = arm == (study.showcase or study.arms[-1]) and seed == study.seeds[0]
    display(study.save_figure(figure, name, values, caption) if shown else figure)

# %% [markdown]
# ## Cost

# %%
costs = {f"seconds, {name}": value for name, value in evaluation["seconds"].items()}
for name in ("attack_steps_per_second", "peak_memory_mb", "parameters"):
    costs[name.replace("_", " ")] = evaluation[name]
es.show_table(pd.DataFrame(costs.items(), columns=["what", "value"]))
