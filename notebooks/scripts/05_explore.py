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
# schemes would do with a batch that holds this ECG. Needs a finished run, such as one of `make study`;
# `make explore` makes a page of it.

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

from ecgstudy.evaluation.explore import attack_record, weigh_record
from ecgstudy.evaluation.sample import attacked_sample
from ecgstudy.plots.explore import controls, draw, draw_energy, draw_weights, summary
from ecgstudy.running.workflow import prepared_records
from ecgstudy.study import Paths, Run, load_study

plan = load_study(study)
run, paths = Run(plan, dataset, arm, seed), Paths(plan.study)
folder = paths.protocol(dataset, arm, seed, "slf")
records = prepared_records(plan, dataset, paths)
table = attacked_sample(records, "test", plan.evaluation.max_records).table
record = record or table["record"].iloc[0]
shown = table.drop(columns=["split", "attacked", "r_peaks"], errors="ignore").head(5)
display(shown.style.hide().format(precision=0, na_rep="–"))

# %% [markdown]
# ## Before and after
#
# Scores are the logits, or the log odds where a record has one class: only their order among records
# counts for AUROC.

# %%
ecg = attack_record(run, records, folder, record, attack, epsilon_mv)
display(draw(ecg, records, epsilon_mv))
ecg.scores.reset_index().style.hide().format(precision=2)

# %% [markdown]
# ## Where the perturbation has its energy
#
# Bars are shares of the perturbation's energy, lines those of white noise on all samples.

# %%
draw_energy(ecg, records)

# %% [markdown]
# ## What weighting schemes would do
#
# In one training batch this ECG has two random views, and an attack on the first. Bars: how hard other
# views pull its clean and its attacked view, which inferior positives treat differently. Points: how hard
# other patients' views push the clean one away, against their similarity to it; 1 (dashed) is uniform.
# Every registered scheme is shown on top of uniform weights, one's own too, and this run's own weighting.

# %%
weights = weigh_record(run, records, folder, record)
display(draw_weights(weights, records))
summary(run, weights)

# %% [markdown]
# ## Try others
#
# In JupyterLab: choose a record, an attack and ε. Each choice is computed anew: the attack, and with
# another record the weights.

# %% tags=["remove-cell"]
attacks = dict.fromkeys([*plan.evaluation.ensemble, *plan.evaluation.attacks])
controls(run, records, folder, [name for name in attacks if name != "transfer"])
