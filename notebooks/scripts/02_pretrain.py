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
# # Pretraining one encoder
#
# Pretrains the encoder of one arm and seed, continues after an interruption, or reads
# the stored one; then shows what the loss does with one batch.
#
# **To change**: `arm`, `dataset` and `seed`, among those of the params file.
# **To try**: `arm = "rocl"` beside `"rocl-ip-hn"`, to see what the weights change.

# %% tags=["parameters"]
params = "params/quick.yaml"
dataset = "builtin"
arm = "rocl-ip-hn"
seed = 0

# %%
from IPython.display import display

import ecgstudy as es

es.check_parameters(globals())
study = es.load_study(params)
run = study.run(dataset, arm, seed)

# %% [markdown]
# ## The arm
#
# An arm is a row of factors. Contrastive arms share one loss, $L = \sum_{ip}
# P_{ip}\,(-S_{ip} + \log(e^{S_{ip}} + D_i)) / \sum_{ip} P_{ip}$ with $D_i = \sum_{k \in
# N} W_{ik}\, e^{S_{ik}}$, and differ in the positive weights $P$, the negative weights
# $W$ and the adversary. `contrast(1 2 1*)` is that loss among two random views of each
# record and the attacked first one; a star marks an attacked view.

# %%
es.show_table(run.describe())

# %% [markdown]
# ## Learning curves
#
# The effective number of negatives is $(\sum w)^2 / \sum w^2$: a weighting that leaves
# it at the number of negatives does nothing. The floor fraction is the share of rows
# whose debiased negatives sit on their lower bound, where they get no gradient.
# Quantities that do not change are left out.

# %%
history = run.pretrain()
if len(history):
    display(es.plots.loss_curves(history))
    display(es.show_table(history.tail(3)))
else:
    print("nothing to train in this arm")

# %% [markdown]
# ## Similarities
#
# Cosines between views of one batch of training records, in evaluation mode: two clean
# views of a record, a clean and an adversarial one, and views of different patients,
# with classes that the loss does not know.

# %%
encoder = es.get_arm(arm).features is None
pairs = run.inspect_batch() if encoder else None
if encoder:
    display(es.plots.similarities(pairs))
else:
    print("engineered features: there is no encoder to look at")

# %% [markdown]
# ## Negative weights
#
# Push weight against similarity; 1 is the standard loss.

# %%
if encoder:
    display(es.plots.push_weights(pairs))

# %% [markdown]
# ## The embedding
#
# Test records on the first two principal components of the encoder's features.

# %%
if encoder:
    display(es.plots.embedding_plane(run.embedding_plane()))
