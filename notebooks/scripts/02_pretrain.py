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
# # 2 · Pretraining one encoder
#
# Trains the encoder of one arm and seed on the training split, or continues where an interrupted
# run stopped, and looks at what the loss does: who pulls, who pushes, and how strongly.

# %% tags=["parameters"]
study = "params/quick.yaml"
dataset = "builtin"
arm = "rocl-ip-hn"
seed = 0

# %%
import pandas as pd
from IPython.display import display

from ecgstudy.evaluation import diagnostics
from ecgstudy.plots import alt_texts
from ecgstudy.plots import single_run as figures
from ecgstudy.pretraining.suffixes import describe_arm, get_arm
from ecgstudy.running.launch import pretrain
from ecgstudy.running.workflow import prepared_records
from ecgstudy.study import Paths, Run, load_study

plan = load_study(study)
paths, run = Paths(plan.study), Run(plan, dataset, arm, seed)
folder, records = paths.run(dataset, arm, seed), prepared_records(plan, dataset, paths)
synthetic = bool(records.card.get("synthetic"))

# %% [markdown]
# ## The arm
#
# An arm is a row of factors. Contrastive arms share one loss,
# $L = \sum_{ip} P_{ip}\,(-S_{ip} + \log(e^{S_{ip}} + D_i)) / \sum_{ip} P_{ip}$ with
# $D_i = \sum_{k \in N} W_{ik}\, e^{S_{ik}}$, and differ in the pull weights $P$, the push weights $W$
# and the adversary. `contrast(1 2 1*)` is that loss among two random views of each record and the
# attacked first one; a star marks an attacked view.

# %%
row = get_arm(arm)
facts = {"idea": row.idea, "source": row.source, "factors": describe_arm(arm), "compared with": row.base or "–"}
pd.DataFrame({arm: facts}).style.set_properties(**{"text-align": "left", "white-space": "normal"})

# %%
history = pd.DataFrame(pretrain(run, records, folder))
encoder = get_arm(arm).features is None
if not encoder:
    print("engineered features: there is no encoder to look at below")

# %% [markdown]
# ## Learning curves
#
# The effective number of negatives is $(\sum w)^2 / \sum w^2$: a weighting that leaves it at the
# number of negatives does nothing. The floor fraction is the share of rows whose debiased negatives
# sit on their lower bound, where they get no gradient.

# %%
if len(history):
    display(figures.stamped(figures.loss_curves(history), synthetic, alt_texts.training(history)))
    display(history.tail(3))

# %% [markdown]
# ## Similarities
#
# Cosines between views of one batch of training records, in evaluation mode: two clean views of a
# record, a clean and an adversarial one, and views of different patients, with classes that the
# loss does not know.

# %%
pairs = diagnostics.inspect_batch(run, records, folder) if encoder else None
if encoder:
    alt = alt_texts.similarities(pairs)
    display(figures.stamped(figures.similarity_distributions(pairs), synthetic, alt))

# %% [markdown]
# ## Who is pushed how hard
#
# Push weight against similarity, for negatives; 1 is the standard loss.

# %%
if encoder:
    negatives = pairs.dropna(subset="weight")
    display(negatives.groupby("same_class")["weight"].describe()[["mean", "min", "50%", "max"]])
    alt = alt_texts.push_weights(negatives)
    display(figures.stamped(figures.weight_profile(negatives), synthetic, alt))

# %% [markdown]
# ## The embedding
#
# Test records on the first two principal components of the encoder's features.

# %%
if encoder:
    plane = diagnostics.embedding_plane(records, folder, device=run.study.device)
    display(figures.stamped(figures.embedding_picture(plane), synthetic, alt_texts.embedding(plane)))
