"""What a reader sees of a table: numbers as they are, a † where one is due."""

import numpy as np
import pandas as pd
from bs4 import BeautifulSoup

from ecgstudy.plots.tables_html import (
    claim_effect,
    readable,
    readable_claims,
    verdict_counts,
)


def cells(styler):
    """The shown table as lists, one a row, with its heading first."""
    rows = BeautifulSoup(styler.to_html(), "html.parser").find_all("tr")
    return [[cell.get_text() for cell in row.find_all(["th", "td"])] for row in rows]


def test_intervals_stand_beside_their_estimates_and_daggers_at_the_arm():
    table = pd.DataFrame({
        "arm": ["rocl", "pgd-at"], "attack": "ensemble", "auroc_shared": [0.51234, 0.7],
        "ci_low": [0.4, np.nan], "ci_high": [0.6, np.nan], "masking_ok": [True, False], "labels_absent": "",
    })  # fmt: skip
    for shown in (table, table.astype({"masking_ok": str})):
        assert cells(readable(shown)) == [
            ["arm", "attack", "AUROC, shared δ"],
            ["rocl", "ensemble", "0.512 [0.400, 0.600]"],
            ["pgd-at †", "ensemble", "0.700"],
        ]


def test_differences_keep_their_sign():
    table = pd.DataFrame({
        "adaptive": ["rocl-ip"], "standard": ["rocl"], "delta": [-0.01], "ci_low": [-0.03],
        "ci_high": [0.01], "p": [0.04], "p_holm": [np.nan], "masking_ok": [None],
    })  # fmt: skip
    assert cells(readable(table)) == [
        ["adaptive", "standard", "difference", "p"],
        ["rocl-ip", "rocl", "−0.010 [−0.030, +0.010]", "0.04"],
    ]


def test_a_table_without_rows_says_so():
    table = pd.DataFrame(
        columns=["effect", "delta", "ci_low", "ci_high", "p", "masking_ok"]
    )
    assert cells(readable(table)) == [["none in this study"]]


CLAIMS = pd.DataFrame({
    "number": [1, 2, 3],
    "claim": ["A & B < C", "D", "E"],
    "verdict": ["contradicted", "not tested", "not tested"],
    "effect": [-0.1, np.nan, np.nan],
    "ci_low": [-0.2, np.nan, np.nan],
    "ci_high": [-0.05, np.nan, np.nan],
    "measure": ["clean", np.nan, np.nan],
    "evidence": ["a − b, clean, mitdb", np.nan, np.nan],
    "masking_ok": [False, np.nan, np.nan],
})  # fmt: skip


def evidence(number, adaptive, measure, value, verdict, **more):
    row = {"number": number, "adaptive": adaptive, "standard": "b", "measure": measure}
    row |= {"dataset": "mitdb", "protocol": "slf", "verdict": verdict, "value": value}
    row |= {"ci_low": value - 0.05, "ci_high": value + 0.05, "masking_ok": True}
    return row | more


EVIDENCE = pd.DataFrame([
    evidence(1, "a", "clean", -0.1, "contradicted", masking_ok=False),
    evidence(1, "c", "step_ms", 1.2, "inconclusive", protocol="slf@ptbxl"),
    evidence(2, "d", "robust", np.nan, "not tested", dataset=None),
    evidence(3, "e", "robust", np.nan, "not tested", dataset=None),
])  # fmt: skip


def test_claims_show_verdicts_in_words_and_one_comparison_a_line():
    html = readable_claims(CLAIMS, EVIDENCE).to_html()
    assert "1. A &amp; B &lt; C" in html
    assert "mitdb: −0.100 [−0.150, −0.050] contradicted †<br>c against b" in html
    assert "c against b, step_ms, mitdb slf@ptbxl: 1.2 [1.15, 1.25]" in html
    assert "d against b, robust: not run" in html
    assert "✗ contradicted †" in html
    assert html.count("– not tested<") == 2
    assert "−0.100 [−0.200, −0.050]" in html


def test_ratios_have_no_sign():
    row = {"effect": 1.118, "ci_low": 0.0022, "ci_high": 576.943, "measure": "step_ms"}
    assert claim_effect(row) == "1.12 [0.0022, 577]"
    assert claim_effect(row | {"measure": "clean"})[0] == "+"


def test_verdicts_are_counted():
    assert verdict_counts(CLAIMS) == "1 contradicted, 2 not tested"
