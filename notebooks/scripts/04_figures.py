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
# # Results
#
# Every table and figure of a study, from its stored scores alone: no model is needed.
#
# **To change**: `params`, for another study. **To try**: plot a table of your own, such
# as `es.plots.pareto(robust.query("arm != 'random'"), study.headline)`.

# %% tags=["parameters"]
params = "params/quick.yaml"

# %%
from IPython.display import display

import ecgstudy as es

es.check_parameters(globals())
study = es.load_study(params)
tables = study.write_tables()
robust, contrasts = tables["robust_auroc"], tables["contrasts"]
verdicts = tables["verdicts"]
headline = es.select_headline(robust, study.headline)

# %% [markdown]
# ## The answer

# %%
display(es.answer(verdicts, contrasts))
figure = es.plots.summary(robust, contrasts, study.headline)
caption = "Clean and robust AUROC of every arm, and the planned comparisons"
study.save_figure(figure, "summary", headline, caption)

# %% [markdown]
# ## Planned comparisons
#
# An arm minus the standard loss, clean and at the headline ε, paired by seed and
# record. *Better* or *worse*: Holm-adjusted two-sided p ≤ 0.05. *Equivalent*:
# Holm-adjusted p of two one-sided tests ≤ 0.05 for the margin ±0.01. Neither:
# *undecided*. Fewer than three seeds: *no claim*. Intervals are unadjusted.

# %%
columns = "dataset measure adaptive standard delta ci_low ci_high p_holm"
columns += " p_equivalence_holm verdict masking_ok"
es.show_table(verdicts[verdicts["margin"] == 0.01], columns)

# %% [markdown]
# ## Caveats
#
# ε bounds the size of a perturbation, not whether a body or an electrode could make it.
# We cannot rule out stronger attacks than these. True differences below the minimum
# detectable effect would usually be missed (power below 80 %). Models marked † fail a
# gradient-masking check and may be overrated. Classes that come mostly from one patient
# say little about others. One data set alone does not generalise.
#
# The page of evaluation shows an ECG before and after attack; that of methods how all
# is measured.

# %%
es.show_table(es.summarise_limits(tables))

# %% [markdown]
# ## All comparisons

# %%
main = contrasts[contrasts["headline"].eq(True) | contrasts["family"].eq("primary")]
columns = "dataset protocol attack adaptive standard delta ci_low ci_high p p_holm"
columns += " family clean_delta masking_ok"
if len(main):
    caption = "Differences in macro AUROC of two arms, with intervals and single seeds"
    display(
        study.save_figure(es.plots.forest(main, robust), "contrasts", main, caption)
    )
es.show_table(main, columns)

# %% [markdown]
# ## Every arm
#
# Means over seeds, with intervals over patients and seeds; one perturbation of a record
# against all labels or, harder, one for each label. An arm is a way to train the
# encoder: the page of methods describes them.

# %%
arms = headline[
    headline["seed"].astype(str).eq("all")
    & headline["attack"].isin(["none", "ensemble"])
]
columns = "dataset protocol arm attack epsilon_mv auroc_shared ci_low ci_high"
columns += " auroc_label masking_ok"
es.show_table(arms.sort_values("epsilon_mv", kind="stable"), columns)

# %%
for protocol in study.protocols:
    name = f"epsilon_curves_{protocol.replace('@', '-to-')}"
    values = robust[robust["attack"].isin(["none", "ensemble"])]
    figure = es.plots.epsilon_curves(robust, contrasts, protocol)
    caption = f"AUROC against the size of the attack, protocol {protocol}"
    display(study.save_figure(figure, name, values, caption))

# %%
for protocol in study.protocols:
    name = f"pareto_{protocol.replace('@', '-to-')}"
    figure = es.plots.pareto(robust, study.headline, protocol)
    caption = f"Clean against robust AUROC of every arm, protocol {protocol}"
    display(study.save_figure(figure, name, arms, caption))

# %% [markdown]
# ## Attacks
#
# Macro AUROC under each attack at the headline ε; the `ensemble` takes, for each
# record, the perturbation that costs most ranks.

# %%
for protocol in study.protocols:
    name = f"attacks_{protocol.replace('@', '-to-')}"
    figure = es.plots.attack_heatmap(robust, study.headline, protocol)
    caption = f"AUROC of every arm under every attack, protocol {protocol}"
    display(study.save_figure(figure, name, headline, caption))

# %% [markdown]
# ## Natural corruptions
#
# The same models without an adversary: what recordings suffer anyway, graded from 1 to
# 5.

# %%
if robust["severity"].notna().any():
    figure = es.plots.corruption_heatmap(robust, study.protocols[0])
    values = robust[robust["severity"].notna()]
    display(
        study.save_figure(
            figure,
            "corruptions",
            values,
            "AUROC of every arm under natural corruptions",
        )
    )
else:
    print("none in this study: evaluation.corruptions in its params file is empty")

# %% [markdown]
# ## Where the perturbation energy goes
#
# Energy in a frequency band, a part of the beat or a lead, over what white noise would
# have there. Parts are times around the R peak: P from −0.20 s, QRS ± 0.06 s, ST and T
# to 0.40 s, before P from −0.40 s. Attacks within ±ε move nearly every sample by ε, so
# parts and leads tell most of those with an ℓ2 budget.

# %%
energy = tables["perturbations"].query("protocol == @study.protocols[0]")
for dataset, rows in energy.groupby("dataset", sort=False):
    figure = es.plots.energy_heatmap(rows)
    display(
        study.save_figure(
            figure, f"energy_by_attack_{dataset}", rows, "Perturbation energy by attack"
        )
    )
    rows = rows[rows["attack"] == "ensemble"]
    figure = es.plots.energy_heatmap(rows, "arm")
    display(
        study.save_figure(
            figure, f"energy_by_arm_{dataset}", rows, "Perturbation energy by arm"
        )
    )

# %% [markdown]
# ## Embeddings and robustness
#
# Features of the attacked records on the unit sphere, clean and under the headline
# attack: a point a seed. ρ is the rank correlation of the arms' means.

# %%
if "alignment" in tables["cost"]:
    points = es.plots.geometry_points(tables["cost"], robust, study.headline)
    figure = es.plots.geometry(points)
    display(
        study.save_figure(
            figure, "geometry", points, "Geometry of the embeddings, and robustness"
        )
    )

# %% [markdown]
# ## Claims from the literature
#
# A claim is supported or contradicted where the adjusted interval of each comparison
# that it is based on lies on one side. The effect shown is that of the weakest comparison;
# `claim_evidence.csv` has all.

# %%
es.show_table(tables["claims"])

# %% [markdown]
# ## Factor effects
#
# Least squares over the contrastive arms, with the same intervals.

# %%
effects = es.select_headline(tables["factor_effects"], study.headline)
effects = effects[effects["attack"].isin(["none", "ensemble"])]
columns = "dataset protocol attack epsilon_mv effect delta ci_low ci_high p mde"
columns += " seeds arms masking_ok"
es.show_table(effects, columns)

# %% [markdown]
# ## Does it hold?
#
# ### Other margins of equivalence

# %%
pair = ["dataset", "measure", "adaptive", "standard"]
by_margin = verdicts.pivot_table("verdict", pair, "margin", "first", sort=False)
by_margin = by_margin.rename(columns="within ±{:g}".format).rename_axis(columns=None)
es.show_table(by_margin.reset_index())

# %% [markdown]
# ### Gradient-masking checks that failed

# %%
checks = tables["masking_checks"]
es.show_table(checks[checks["verdict"] == "fail"])

# %% [markdown]
# ### The headline ε, and the rule that chose it
#
# AUROC of the supervised arm on validation records; the rule takes the smallest ε at
# which it is at most 0.5.

# %%
es.show_table(tables["headline_check"])

# %% [markdown]
# ### Arms under other choices
#
# Without classes that come mostly from one patient, with the `sensitivity` records, without each
# patient, after rounding to ADC units.

# %%
es.show_table(tables["sensitivity"].drop(columns="note"))

# %% [markdown]
# ### Planned comparisons under other choices
#
# The same, and by seed, class, age and sex.

# %%
es.show_table(tables["contrast_sensitivity"].drop(columns="note"))

# %% [markdown]
# ## Cost

# %%
cost = tables["cost"]
study.save_figure(
    es.plots.cost(cost), "cost", cost, "Training time and attack speed of every arm"
)

# %% [markdown]
# ## Tables and citation
#
# Under each figure are links to it as SVG and PNG, and to its exact values. All tables:

# %%
display(es.list_tables(tables))
print(f"To cite: The ecgstudy authors, ecgstudy {es.__version__}; see CITATION.cff")
