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

from ecgstudy import comparisons, figures
from ecgstudy.datasets import is_synthetic
from ecgstudy.factors import bases, factor_table
from ecgstudy.study import ENSEMBLE, Paths, load_study
from ecgstudy.tables import write_tables

plan = load_study(study)
paths, attack = Paths(plan.study), ENSEMBLE
headline = {name: options.headline_epsilon_mv for name, options in plan.datasets.items()}
synthetic = is_synthetic(plan)
save = {"folder": paths.figures, "synthetic": synthetic}

# %%
tables = write_tables(plan, paths, factor_table(plan.arms), bases(plan.arms), attack)
robust, contrasts = tables["robust_auroc"], tables["contrasts"]
print(f"{len(plan.arms)} arms × {len(plan.seeds)} seeds; {attack} at", headline, "mV")

# %% [markdown]
# ## The question
#
# Adaptive weighting minus the standard loss, at the headline ε. The primary family is adjusted by
# Holm's method; everything else is exploratory.

# %%
main = contrasts[contrasts["headline"]]
columns = "dataset adaptive standard delta ci_low ci_high p p_holm family clean_delta".split()
display(main[columns].style.hide().format(precision=3, na_rep="–"))
figure = comparisons.contrast_forest(main)
alt = "Differences of robust AUROC between adaptive and standard arms, with intervals"
figures.save_figure(figure, name="contrasts", values=main, alt=alt, **save)

# %% [markdown]
# ## Claims from the literature, judged on this study's data

# %%
wide = {"min-width": "20rem", "white-space": "normal", "text-align": "left"}
claims = tables["claims"].style.set_properties(subset=["claim", "evidence"], **wide)
display(claims.hide().format(precision=3, na_rep="–"))

# %% [markdown]
# ## Clean and robust AUROC of every arm
#
# Means over seeds. † marks arms whose evaluation failed a check for gradient masking.

# %%
at_headline = robust["epsilon_mv"].isin([0.0]) | (robust["epsilon_mv"] == robust["dataset"].map(headline))
rows = robust[at_headline & (robust["seed"].astype(str) == "all") & robust["attack"].isin(["none", attack])]
columns = (
    "dataset arm attack epsilon_mv auroc_shared ci_low ci_high auroc_label n_records n_patients masking_ok"
)
display(rows[columns.split()].style.hide().format(precision=3, na_rep="–"))

# %%
figure = comparisons.epsilon_curves_by_arm(robust, attack)
values = robust[robust["attack"].isin(["none", attack])]
alt = "Robust AUROC against the attack budget for every arm, with intervals"
figures.save_figure(figure, name="epsilon_curves", values=values, alt=alt, **save)

# %%
figure = comparisons.pareto(robust, headline, attack)
alt = "Clean against robust AUROC of every arm"
figures.save_figure(figure, name="pareto", values=rows, alt=alt, **save)

# %% [markdown]
# ## Which factor does what
#
# Least squares over the contrastive arms, with the same intervals.

# %%
effects = tables["factor_effects"]
display(effects[effects["epsilon_mv"].isin([0.0, *headline.values()])].style.hide().format(precision=3))

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
display(failed.style.hide().format(precision=4))
display(tables["headline_check"].style.hide().format(precision=3))

# %%
sensitivity = tables["sensitivity"]
display(sensitivity.drop(columns="note", errors="ignore").style.hide().format(precision=3, na_rep="–"))

# %% [markdown]
# ## What it cost

# %%
cost = tables["cost"]
figure = comparisons.cost_figure(cost)
alt = "Training time and attack throughput of every arm"
figures.save_figure(figure, name="cost", values=cost, alt=alt, **save)
