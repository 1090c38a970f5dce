"""What a reader sees of a table: readable names and numbers, a † where one is due."""

import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from drawn import HEADLINE, contrast_table, robust_table

from ecgstudy.plots.tables_html import (
    answer,
    list_tables,
    select_headline,
    show_table,
    summarise_limits,
)


def cells(html):
    """The shown table as lists, one a row, with its heading first."""
    rows = BeautifulSoup(html.data, "html.parser").find_all("tr")
    found = [[c.get_text() for c in row.find_all(["th", "td"])] for row in rows]
    return [[text.replace("\u00a0", " ") for text in row] for row in found]


def test_intervals_stand_beside_their_estimates_and_daggers_at_the_arm():
    table = pd.DataFrame({
        "arm": ["rocl", "pgd-at"], "attack": ["none", "ensemble"],
        "auroc_shared": [0.51234, 0.7], "ci_low": [0.4, np.nan],
        "ci_high": [0.6, np.nan], "masking_ok": [True, False], "labels_absent": "",
    })  # fmt: skip
    assert cells(show_table(table)) == [
        ["arm", "attack", "AUROC"],
        ["rocl", "clean", "0.512 [0.400, 0.600]"],
        ["pgd-at †", "ensemble", "0.700"],
    ]


def test_differences_keep_their_sign_and_small_p_are_not_spelled_out():
    table = pd.DataFrame({
        "adaptive": ["rocl-ip", "rocl-hn"], "standard": "rocl", "delta": [-0.01, 0.2],
        "ci_low": [-0.03, 0.1], "ci_high": [0.01, 0.3], "p": [0.04, 6.2e-5],
        "p_holm": [np.nan, 0.5], "masking_ok": [None, True],
    })  # fmt: skip
    assert cells(show_table(table)) == [
        ["arm", "minus", "difference", "p", "p (Holm)"],
        ["rocl-ip", "rocl", "−0.010 [−0.030, +0.010]", "0.040", "–"],
        ["rocl-hn", "rocl", "+0.200 [+0.100, +0.300]", "< 0.001", "0.500"],
    ]


@pytest.mark.parametrize(
    ("column", "value", "text"),
    [
        ("epsilon_mv", 0.005, "0.005"),
        ("n_records", 1234, "1,234"),
        ("seconds", 1234.5, "1,234"),
        ("clean_delta", -0.0301, "−0.030"),
        ("equal_clean", np.True_, "yes"),
        ("value", -0.5, "−0.500"),
        ("effect", "hard_negatives", "hard negatives"),
    ],
)
def test_numbers_are_written_as_their_column_asks(column, value, text):
    assert cells(show_table(pd.DataFrame({column: [value]})))[1] == [text]


def test_ratios_of_claims_have_no_sign():
    table = pd.DataFrame({
        "claim": ["A & B < C", "D"], "effect": [1.118, 0.1], "ci_low": [0.002, -0.1],
        "ci_high": [576.943, 0.3], "measure": ["step_ms", "clean"],
        "masking_ok": [True, False],
    })  # fmt: skip
    assert cells(show_table(table))[1:] == [
        ["A & B < C", "1.118 [0.002, 576.943]", "step ms"],
        ["D †", "+0.100 [−0.100, +0.300]", "clean"],
    ]


def test_chosen_columns_are_shown_in_their_order_and_no_rows_are_said():
    table = pd.DataFrame({"seed": [0], "arm": ["rocl"], "epochs": [2]})
    assert cells(show_table(table, "arm seed")) == [["arm", "seed"], ["rocl", "0"]]
    assert "None in this study" in show_table(table.iloc[:0]).data


def test_the_answer_names_planned_and_large_differences():
    pairs = [
        ("rocl-ip", "rocl", 0.02),
        ("rocl", "simclr", 0.3),
        ("hcl", "simclr", 0.01),
    ]
    verdicts = pd.DataFrame({
        "dataset": ["one"], "measure": "robust", "adaptive": "rocl-ip",
        "standard": "rocl", "margin": 0.01, "verdict": "better", "seeds": 3,
        "masking_ok": True,
    })  # fmt: skip
    said = answer(verdicts, contrast_table(pairs)).data.replace("\u00a0", " ")
    assert "better: rocl-ip" in said
    assert "rocl − simclr +0.300 [+0.290, +0.310]" in said
    assert "hcl" not in said
    assert "planned" in answer(verdicts.iloc[:0], contrast_table(pairs[2:])).data


def test_limits_have_a_row_a_data_set():
    robust = robust_table(["rocl", "rocl-ip"]).assign(n_patients=9, n_unidentified=2)
    checks = pd.DataFrame({"dataset": ["one", "one"], "verdict": ["fail", "pass"]})
    classes = {
        "dataset": ["one"] * 3,
        "class": [*"NFF"],
        "dominated": [False, True, True],
    }
    tables = {
        "robust_auroc": robust,
        "contrasts": contrast_table([("rocl-ip", "rocl", 0.02)], mde=0.04),
        "masking_checks": checks,
        "per_class": pd.DataFrame(classes),
    }
    limits = summarise_limits(tables).set_index("dataset")
    assert limits.loc["one", "mde"] == 0.04
    assert limits.loc["one", "failed masking checks"] == 1
    assert limits.loc["one", "classes mostly from one patient"] == "F"
    assert limits.loc["two", "n_records"] == 100


def test_tables_are_listed_with_links():
    table = select_headline(robust_table(["rocl"]), HEADLINE)
    html = list_tables({"robust_auroc": table}).data
    assert 'href="../tables/robust_auroc.csv"' in html
    assert f"({len(table)} rows)" in html
