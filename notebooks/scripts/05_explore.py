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
# # One ECG
#
# One ECG, one attack, one ε: what the attack changes, where it puts its energy, and
# what weighting schemes do with a batch that holds this ECG. Needs a finished run, such
# as one of `make study`; `make explore` makes a page of it.
#
# **To change**: the parameters, or the controls below. **To try**: the same record
# under `rocl` and `supervised`.

# %% tags=["parameters"]
params = "params/quick.yaml"
dataset = "builtin"
arm = "rocl-ip-hn"
seed = 0
record = ""  # an id of the table below; empty: the first
attack = "apgd-margin"
epsilon_mv = 0.05

# %%
from IPython.display import display

import ecgstudy as es

es.check_parameters(globals())
study = es.load_study(params)
run = study.run(dataset, arm, seed)
records = run.records()
test = records.table[records.table["attacked"] & records.table["split"].eq("test")]
record = record or test["record"].iloc[0]
es.show_table(
    test.drop(columns=["split", "attacked", "r_peaks"], errors="ignore").head(5)
)

# %% [markdown] tags=["remove-cell"]
# ## Choose
#
# The button is grey while it computes. Everything below is for the parameters above.

# %% tags=["remove-cell"]
run.show_controls(record, attack, epsilon_mv)

# %% [markdown]
# ## Before and after
#
# Scores are the logits, or the log odds where a record has one class: only their order
# among records counts for AUROC.

# %%
ecg = run.attack_record(record, attack, epsilon_mv)
title = f"record {record}, {attack}, ε = {1000 * epsilon_mv:g} µV"
display(
    es.plots.draw_ecg(ecg.signal, records.fs, records.leads, ecg.deltas[attack], title)
)
es.show_table(ecg.scores.reset_index())

# %% [markdown]
# ## Spectral and temporal distribution
#
# Energy by frequency, part of the beat and lead, over what white noise would have.

# %%
es.plots.energy_heatmap(run.perturbation_energy(ecg).assign(attack=attack))

# %% [markdown]
# ## What weighting schemes do
#
# In one training batch this ECG has two random views, and an attack on the first. Bars:
# total positive weight on its clean and its attacked view, which inferior positives
# treat differently. Points: how hard other patients' views push the clean one away,
# against their similarity to it; 1 (dashed) is uniform.

# %%
weights = run.weigh_record(record)
display(es.plots.pull_weights(weights), es.plots.push_weights(weights))
es.show_table(run.summarise_weights(weights))
