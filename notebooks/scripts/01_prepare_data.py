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
# # 1 · The data
#
# Reads one data set of the study, cuts and labels its records, splits them by patient, and shows
# what there is: how many records of which class, what the ECGs look like, who the patients are, and
# how large the attack budgets are beside the signals. Every later notebook reads the arrays that
# this one writes.

# %% tags=["parameters"]
study = "params/quick.yaml"
dataset = "builtin"

# %%
import pandas as pd
from IPython.display import display

from ecgstudy.plots import alt_texts, ecg_paper
from ecgstudy.plots import single_run as figures
from ecgstudy.records import count_classes
from ecgstudy.running.workflow import prepared_records
from ecgstudy.study import Paths, load_study

plan = load_study(study)
paths = Paths(plan.study)
records = prepared_records(plan, dataset, paths)
save = {"folder": paths.figures, "synthetic": bool(records.card.get("synthetic"))}

# %% [markdown]
# ## What was read
#
# Source, version, licence and every adaptation, as the loader states them.

# %%
facts = {key: value for key, value in records.card.items() if isinstance(value, str | int | float)}
facts |= {"records": len(records), "leads": ", ".join(records.leads), "rate": f"{records.fs:g} Hz"}
facts["length"] = f"{records.signals.shape[2] / records.fs:.2f} s"
pd.DataFrame({"": facts}).style.set_properties(**{"text-align": "left", "white-space": "normal"})

# %% [markdown]
# ## Classes and splits
#
# Splits share no patient; this is asserted when the data are prepared. `sensitivity` records, where
# there are any, are scored beside the test set but stay out of the primary analysis.

# %%
counts = count_classes(records)
display(counts.pivot(index="class", columns="split", values="records").fillna(0).astype(int))
per_split = records.table.groupby("split").agg(patients=("patient", "nunique"), attacked=("attacked", "sum"))
display(per_split)
figure = figures.class_counts(counts)
alt = alt_texts.class_counts(counts)
figures.save_figure(figure, name=f"class_counts_{dataset}", values=counts, alt=alt, **save)

# %% [markdown]
# ## One ECG of each class
#
# On ECG paper: 25 mm/s and 10 mm/mV; a large square is 0.2 s by 0.5 mV.

# %%
chosen = ecg_paper.typical_records(records)
for row, name in zip(chosen, records.classes, strict=True):
    ecg = records.signals[row]
    title = f"{name} (record {records.table['record'][row]})"
    figure = ecg_paper.draw_ecg(ecg, records.fs, records.leads, title=title)
    values = ecg_paper.ecg_values(ecg, records.fs, records.leads)
    safe = name.replace(" ", "_").replace("/", "-")
    alt = alt_texts.ecg(values, title)
    display(figures.save_figure(figure, name=f"ecg_{dataset}_{safe}", values=values, alt=alt, **save))

# %% [markdown]
# ## Age and sex
#
# Known ages only; missing values stay missing.

# %%
people = records.table.drop_duplicates("patient").reindex(columns=["patient", "age", "sex"])
figure = figures.age_sex(people)
alt = alt_texts.age_sex(people)
figures.save_figure(figure, name=f"age_sex_{dataset}", values=people, alt=alt, **save)

# %% [markdown]
# ## Amplitudes against the attack budgets
#
# The attack may change each sample by at most ε. The lines are the study's grid of ε.

# %%
figure = figures.amplitude_against_epsilon(records, plan.evaluation.epsilons_mv)
amplitudes = figures.record_amplitudes(records)
alt = alt_texts.amplitudes(amplitudes, plan.evaluation.epsilons_mv)
table = amplitudes.sample(min(2000, len(amplitudes)), random_state=0).sort_index()
figures.save_figure(figure, name=f"amplitudes_{dataset}", values=table, alt=alt, **save)
