"""Heat maps show each value once, in its cell, and miss none."""

import numpy as np
import pandas as pd
import pytest
from drawn import HEADLINE, robust_table

from ecgstudy import plots
from ecgstudy.errors import StudyError
from ecgstudy.plots.tables_html import select_headline


def cells(axes, columns):
    """Text of the cells as rows of the map; "" for missing values."""
    shown = {
        (int(t.get_position()[1]), int(t.get_position()[0])): t.get_text()
        for t in axes.texts
        if t.get_position()[1] > 0
    }
    rows = 1 + max(row for row, _ in shown)
    return [[shown.get((row, c), "") for c in range(columns)] for row in range(rows)]


def labels(axes, axis):
    return [label.get_text() for label in getattr(axes, f"get_{axis}ticklabels")()]


def results():
    table = robust_table(["supervised", "rocl"], failing="rocl")
    return table.assign(auroc_shared=table["auroc_shared"].round(1))


def test_attacks_are_ordered_from_mild_to_strong_at_the_headline_epsilon():
    table = results()
    beside = table[table["attack"] == "ensemble"]
    table = pd.concat([table, beside.assign(epsilon_mv=0.1, auroc_shared=0.01)])
    figure = plots.attack_heatmap(table, HEADLINE)
    for axes in figure.axes[:2]:
        assert labels(axes, "x") == ["clean", "fgsm *", "ensemble"]
        assert labels(axes, "y") == ["supervised", "rocl †"]
        assert cells(axes, 3) == [[".90", ".80", ".70"], [".80", ".70", ".60"]]
    assert "on fewer records" in figure._supxlabel.get_text()
    assert "gradient-masking" in figure._supxlabel.get_text()


def test_an_attack_that_an_arm_was_not_given_leaves_its_cell_empty():
    table = results()
    table = table[(table["arm"] != "rocl") | (table["attack"] != "fgsm")]
    assert cells(plots.attack_heatmap(table, HEADLINE).axes[0], 3)[1] == [
        ".80",
        "",
        ".60",
    ]


def test_corruptions_stand_side_by_side_with_their_severities():
    table = results()
    clean = table[(table["attack"] == "none") & (table["dataset"] == "one")]
    worse = [
        clean.assign(attack="lead-loss", severity=level, auroc_shared=0.8 - level / 10)
        for level in (1.0, 2.0)
    ]
    figure = plots.corruption_heatmap(pd.concat([table, *worse]))
    assert labels(figure.axes[0], "x") == ["0", "1", "2"]
    assert cells(figure.axes[0], 3) == [[".90", ".70", ".60"], [".80", ".70", ".60"]]
    assert cells(figure.axes[1], 3) == [[".90", "", ""], [".80", "", ""]]
    assert "lead\nloss" in {text.get_text() for text in figure.axes[0].texts}
    with pytest.raises(StudyError, match="no natural corruptions"):
        plots.corruption_heatmap(table)


def test_headline_rows_leave_out_corruptions_and_other_budgets_also_under_transfer():
    table = results()
    other = table.assign(epsilon_mv=0.1, attack="fgsm")
    corrupted = table[table["attack"] == "none"].assign(severity=1.0, attack="muscle")
    kept = select_headline(pd.concat([table, other, corrupted]), HEADLINE)
    assert len(kept) == len(table)
    moved = table[table["dataset"] == "one"].assign(protocol="slf@two")
    assert set(select_headline(moved, HEADLINE)["attack"]) == {"none"}


def energies():
    share = {("noise", "low"): 0.2, ("noise", "high"): 0.8}
    share |= {("pgd", "low"): 0.5, ("pgd", "high"): 0.5}
    rows = [
        {
            "arm": arm, "attack": attack, "kind": "band", "name": name, "share": value,
            "size": 0.2 if name == "low" else 0.8, "masking_ok": arm == "rocl",
        }
        for arm in ("rocl", "simclr") for (attack, name), value in share.items()
    ]  # fmt: skip
    lead = {"kind": "lead", "name": "II", "share": 1.0, "size": 1.0}
    return pd.DataFrame([*rows, {**rows[0], **lead}])


def test_energy_is_over_that_of_white_noise():
    (axes,) = plots.energy_heatmap(energies()).axes
    assert labels(axes, "x") == ["low", "high", "II"]
    assert {"frequency\nband", "lead"} <= {text.get_text() for text in axes.texts}
    assert labels(axes, "y") == ["noise", "pgd"]
    assert cells(axes, 3) == [["1.0", "1.0", "1.0"], ["2.5", "0.6", ""]]
    (by_arm,) = plots.energy_heatmap(energies(), "arm").axes
    assert labels(by_arm, "y") == ["rocl", "simclr †"]
    one = energies().query("arm == 'rocl' and attack == 'pgd'")
    (alone,) = plots.energy_heatmap(one.drop(columns=["arm", "masking_ok"])).axes
    assert np.shape(cells(alone, 2)) == (1, 2)
