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
# # The data
#
# What one data set of a study holds: classes and splits, ECGs on ECG paper, patients,
# and how large attacks are relative to the signals. Records are read, cut, labelled and
# split by patient the first time.
#
# **To change**: `dataset`, one of the params file's; its window, leads and rate are set
# there.
# **To try**: set `signals` in the fourth cell to another record, or draw it with fewer
# leads.

# %% tags=["parameters"]
params = "params/quick.yaml"
dataset = "builtin"

# %%
import pandas as pd
from IPython.display import display

import ecgstudy as es

es.check_parameters(globals())
study = es.load_study(params)
records = study.records(dataset)
print(f"{len(records):,} records of {records.table['patient'].nunique():,} patients")

# %% [markdown]
# ## Source
#
# Version, licence and every adaptation, as the loader states them.

# %%
facts = {
    name: fact
    for name, fact in records.card.items()
    if isinstance(fact, str | int | float)
}
facts["leads"] = ", ".join(records.leads)
facts["rate"] = f"{records.fs:g} Hz"
facts["length"] = f"{records.signals.shape[2] / records.fs:.2f} s"
es.show_table(pd.DataFrame(facts.items(), columns=["fact", dataset]))

# %% [markdown]
# ## Classes and splits
#
# Splits share no patient, which is asserted when the data are prepared. `sensitivity`
# records, where there are any, are scored like the test set but stay out of the
# primary analysis.

# %%
counts = es.count_classes(records)
splits = records.table.groupby("split", sort=False)
display(
    es.show_table(
        splits.agg(
            patients=("patient", "nunique"), attacked=("attacked", "sum")
        ).reset_index()
    )
)
figure = es.plots.class_counts(counts)
study.save_figure(
    figure, f"class_counts_{dataset}", counts, "Records of each class and split"
)

# %% [markdown]
# ## One ECG of each class
#
# On ECG paper: 25 mm/s and 10 mm/mV; a large square is 0.2 s by 0.5 mV.

# %%
for row, name in zip(es.plots.pick_typical(records), records.classes, strict=True):
    signals, record = records.signals[row], records.table["record"][row]
    caption = f"{name} (record {record})"
    figure = es.plots.draw_ecg(signals, records.fs, records.leads, title=caption)
    values = es.plots.ecg_values(signals, records.fs, records.leads)
    file = name.replace(" ", "_").replace("/", "-")
    display(study.save_figure(figure, f"ecg_{dataset}_{file}", values, caption))

# %% [markdown]
# ## Age and sex
#
# Known ages only; missing values stay missing.

# %%
people = records.table.drop_duplicates("patient").reindex(
    columns=["patient", "age", "sex"]
)
study.save_figure(
    es.plots.age_sex(people),
    f"age_sex_{dataset}",
    people,
    "Ages of the patients by sex",
)

# %% [markdown]
# ## Amplitudes and attack budgets
#
# An attack may change each sample by at most ε. The dashed lines are the study's grid
# of ε.

# %%
amplitudes = es.plots.measure_amplitudes(records)
figure = es.plots.amplitudes(amplitudes, study.evaluation.epsilons_mv)
some = amplitudes.sample(min(2000, len(amplitudes)), random_state=0).sort_index()
study.save_figure(
    figure,
    f"amplitudes_{dataset}",
    some,
    "Amplitudes of the ECGs, and the attack budgets",
)
