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
# # 4 · All runs: tables and figures
#
# Everything here is computed from the stored scores of the study's runs; no model is needed. A
# contrast is the difference of macro AUROC between two arms that differ in the named factor, paired
# by seed and record. Its interval adds the variance between patients (cluster jackknife) to that
# between seeds (two-way t). With fewer than three seeds nothing is claimed beyond those seeds.

# %% tags=["parameters"]
study = "params/quick.yaml"

# %%
from IPython.display import display

from ecgstudy.analysis.tables import write_tables
from ecgstudy.datasets.prepare import is_synthetic
from ecgstudy.plots import alt_texts, comparisons, heatmaps
from ecgstudy.plots import single_run as figures
from ecgstudy.plots import style as plotting
from ecgstudy.plots.tables_html import readable, readable_claims, verdict_counts
from ecgstudy.study import ENSEMBLE, Paths, load_study

plan = load_study(study)
paths, attack, protocol = Paths(plan.study), ENSEMBLE, plan.protocols[0]
headline = {name: options.headline_epsilon_mv for name, options in plan.datasets.items()}
save = {"folder": paths.figures, "synthetic": is_synthetic(plan)}
suffixes = {p: f"_{p.replace('@', '-to-')}" * (p != protocol) for p in plan.protocols}

# %%
tables = write_tables(plan, paths)
robust, contrasts, perturbations = (tables[name] for name in ("robust_auroc", "contrasts", "perturbations"))
budgets = ", ".join(f"{epsilon:g} mV on {name}" for name, epsilon in headline.items())
print(f"{len(plan.arms)} arms × {len(plan.seeds)} seeds; {attack} at {budgets}")

# %% [markdown]
# ## Claims from the literature, judged on these ECGs
#
# A claim is supported or contradicted where the adjusted interval of each comparison that it rests on
# lies on one side, on every data set. The effect shown is that of the weakest comparison. † marks
# models that fail a check for gradient masking, here and in all tables and figures.

# %%
print(verdict_counts(tables["claims"]))
display(readable_claims(tables["claims"], tables["claim_evidence"]))

# %% [markdown]
# ## Adaptive against standard
#
# Adaptive weighting minus the standard loss, at the headline ε. The primary family is adjusted by
# Holm's method; everything else is exploratory.

# %%
main = contrasts[plotting.is_true(contrasts["headline"])]
figure = comparisons.contrast_forest(main)
alt = alt_texts.forest(main)
display(figures.save_figure(figure, name="contrasts", values=main, alt=alt, **save))
columns = (
    "dataset protocol adaptive standard delta ci_low ci_high p p_holm family clean_delta masking_ok".split()
)
readable(main[columns])

# %% [markdown]
# ## Clean and robust AUROC of every arm
#
# Means over seeds; intervals hold for patients and seeds.

# %%
rows = plotting.at_headline(robust, headline)
rows = rows[(rows["seed"].astype(str) == "all") & rows["attack"].isin(["none", attack])]
rows = rows.sort_values("epsilon_mv", kind="stable")
columns = (
    "dataset arm protocol attack epsilon_mv auroc_shared ci_low ci_high auroc_label n_records n_patients"
)
readable(rows[[*columns.split(), "masking_ok"]])

# %%
values = robust[robust["attack"].isin(["none", attack])]
for name, suffix in suffixes.items():
    figure = comparisons.epsilon_curves_by_arm(robust, attack, name)
    alt = alt_texts.clean_and_robust(values, headline, attack, name)
    display(figures.save_figure(figure, name=f"epsilon_curves{suffix}", values=values, alt=alt, **save))

# %%
for name, suffix in suffixes.items():
    figure = comparisons.pareto(robust, headline, attack, name)
    alt = alt_texts.clean_and_robust(rows, headline, attack, name, "Clean against robust macro AUROC")
    display(figures.save_figure(figure, name=f"pareto{suffix}", values=rows, alt=alt, **save))

# %% [markdown]
# ## Which attack
#
# Macro AUROC under each attack at the headline ε; the `ensemble` takes for each record the
# perturbation that costs most ranks.

# %%
values = plotting.at_headline(robust, headline)
for name, suffix in suffixes.items():
    figure = heatmaps.attack_heatmap(robust, headline, name)
    alt = alt_texts.by_attack(values, headline, name)
    display(figures.save_figure(figure, name=f"attacks{suffix}", values=values, alt=alt, **save))

# %% [markdown]
# ## Natural corruptions
#
# The same models without an adversary: what recordings suffer anyway, graded from 1 to 5.

# %%
if robust["severity"].notna().any():
    values = plotting.corrupted(robust)
    alt = alt_texts.by_corruption(values, protocol)
    figure = comparisons.corruption_curves(robust, protocol)
    display(figures.save_figure(figure, name="corruption_curves", values=values, alt=alt, **save))
    figure = heatmaps.corruption_heatmap(robust, protocol)
    display(figures.save_figure(figure, name="corruptions", values=values, alt=alt, **save))
else:
    print("none in this study: evaluation.corruptions in its params file is empty")

# %% [markdown]
# ## What attacks use of an ECG
#
# Energy of the perturbations at the headline ε in a band, a part of the beat or a lead, over what
# white noise would have there. Parts are times around the R peak: P from −0.20 s, QRS ± 0.06 s, ST
# and T to 0.40 s, before P from −0.40 s. Attacks within ±ε move nearly every sample by ε, so parts and
# leads tell most of those with an ℓ2 budget.

# %%
perturbations = perturbations[perturbations["protocol"] == protocol]
for name, rows in perturbations.groupby("dataset", sort=False):
    figure, alt = heatmaps.use_heatmap(rows), alt_texts.energy_use(rows)
    display(figures.save_figure(figure, name=f"use_by_attack_{name}", values=rows, alt=alt, **save))
    rows = rows[rows["attack"] == attack]
    figure, alt = heatmaps.use_heatmap(rows, "arm"), alt_texts.energy_use(rows, "arm")
    display(figures.save_figure(figure, name=f"use_by_arm_{name}", values=rows, alt=alt, **save))

# %% [markdown]
# ## Embeddings and robustness
#
# Features of the attacked records on the unit sphere, clean and under the headline attack: a point
# a seed. ρ is the rank correlation of the arms' means.

# %%
cost = tables["cost"]
if set(comparisons.MEASURES) <= set(cost):
    figure = comparisons.geometry_figure(cost, robust, headline, attack, protocol)
    values = comparisons.geometry_points(cost, robust, headline, attack, protocol)
    alt = alt_texts.geometry(values, list(comparisons.MEASURES))
    display(figures.save_figure(figure, name="geometry", values=values, alt=alt, **save))

# %% [markdown]
# ## Which factor does what
#
# Least squares over the contrastive arms, with the same intervals.

# %%
effects = plotting.at_headline(tables["factor_effects"], headline)
effects = effects[effects["attack"].isin(["none", attack])]
columns = "dataset protocol attack epsilon_mv effect delta ci_low ci_high p mde seeds arms masking_ok".split()
readable(effects[columns])

# %% [markdown]
# ## Does it hold?
#
# Checks for gradient masking that failed; the headline ε and the rule that chose it, on validation
# records; and the headline result under other choices: without classes that hang on one patient,
# with the `sensitivity` records, without each patient, after rounding to ADC units.

# %%
checks = tables["masking_checks"]
failed = checks[checks["verdict"] == "fail"]
print(f"{len(failed)} of {len(checks)} checks failed")
display(failed.style.hide().format(precision=4, na_rep="–"))
readable(tables["headline_check"])

# %%
readable(tables["sensitivity"].drop(columns="note"))

# %% [markdown]
# The primary contrasts in robust AUROC under the same choices, by seed, class, age and sex.

# %%
by_choice = tables["contrast_sensitivity"].query("attack != 'none'")
readable(by_choice.drop(columns=["note", "attack"]))

# %% [markdown]
# ## What it cost

# %%
figure = comparisons.cost_figure(cost)
figures.save_figure(figure, name="cost", values=cost, alt=alt_texts.cost(cost), **save)
