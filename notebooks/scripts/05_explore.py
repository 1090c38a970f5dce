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
# # 5 · Explore
#
# One ECG, one attack, one ε: what the attack changes, where it puts its energy, and what weighting
# schemes would do with a batch that holds this ECG. Needs a finished run, such as one of `make study`.

# %% tags=["parameters"]
study = "params/quick.yaml"
dataset = "builtin"
arm = "rocl-ip-hn"
seed = 0
record = ""  # an id of the table below; empty: the first
attack = "apgd-margin"
epsilon_mv = 0.05

# %%
from IPython.display import display

from ecgstudy import figures
from ecgstudy.plots.explore import Explorer, controls, effective_negatives
from ecgstudy.study import Paths, Run, load_study

plan = load_study(study)
explorer = Explorer.of(Run(plan, dataset, arm, seed), Paths(plan.study))
synthetic = bool(explorer.records.card.get("synthetic"))
table = explorer.test.table
record = record or table["record"].iloc[0]
shown = table.drop(columns=["split", "attacked", "r_peaks"], errors="ignore").head(5)
display(shown.style.hide().format(precision=0, na_rep="–"))

# %% [markdown]
# ## Before and after
#
# Scores are the logits, or the log odds where a record has one class: only their order among records
# counts for AUROC.

# %%
ecg = explorer.attacked(record, attack, epsilon_mv)
display(figures.stamped(explorer.draw(ecg, epsilon_mv), synthetic))
ecg.scores.reset_index().style.hide().format(precision=2)

# %% [markdown]
# ## Where the perturbation has its energy
#
# Bars are shares of the perturbation's energy, lines those of white noise on all samples.

# %%
energy = explorer.energy(ecg)
figures.stamped(figures.energy_shares(energy), synthetic)

# %% [markdown]
# ## What weighting schemes would do
#
# How hard other patients' views are pushed away from this ECG in one training batch, against their
# similarity to it. A scheme of one's own can be named here, too.

# %%
schemes = ["uniform", "hard-negatives", "clinical-risk"]
weights = explorer.weights(record, schemes)
display(figures.stamped(figures.weight_profile(weights), synthetic))
effective_negatives(weights).style.hide().format(precision=1)

# %% [markdown]
# ## Try others
#
# In JupyterLab: choose a record, an attack and ε. Each choice is computed anew.

# %% tags=["remove-cell"]
attacks = dict.fromkeys([*plan.evaluation.ensemble, *plan.evaluation.attacks])
controls(explorer, [name for name in attacks if name != "transfer"])
