"""Heat maps show each value once, in its cell, and miss none."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from ecgstudy.errors import StudyError
from ecgstudy.plots import heatmaps
from ecgstudy.plots import style as plotting

HEADLINE = {"one": 0.02, "two": 0.05}


def results(arms=("supervised", "rocl"), failing="rocl"):
    """AUROC 0.9 clean, less under attacks; at other ε and under corruptions values that must not appear."""
    rows = []
    for dataset, headline in HEADLINE.items():
        for i, arm in enumerate(arms):
            same = {
                "dataset": dataset,
                "arm": arm,
                "seed": "all",
                "protocol": "slf",
                "severity": np.nan,
            }
            same |= {"masking_ok": arm != failing, "n_records": 100}
            values = {
                "none": 0.9,
                "pgd": 0.5,
                "fgsm": 0.7,
                "ensemble": 0.4,
                "square": 0.6,
            }
            for attack, value in values.items():
                at = {
                    "epsilon_mv": 0.0 if attack == "none" else headline,
                    "auroc_shared": value - 0.1 * i,
                }
                rows.append(
                    same
                    | at
                    | {"attack": attack, "n_records": 20 if attack == "square" else 100}
                )
            rows.append(
                same | {"attack": "ensemble", "epsilon_mv": 0.1, "auroc_shared": 0.01}
            )
            for level in (1.0, 2.0) if dataset == "one" else ():
                at = {
                    "severity": level,
                    "epsilon_mv": 0.0,
                    "auroc_shared": 0.8 - 0.1 * level - 0.1 * i,
                }
                rows.append(same | at | {"attack": "muscle"})
    return pd.DataFrame(rows)


def cells(axes):
    """Text of the cells as rows of the map."""
    shape = axes.images[0].get_array().shape
    placed = {
        (round(t.get_position()[1]), round(t.get_position()[0])): t.get_text()
        for t in axes.texts
    }
    return [
        [placed[row, column] for column in range(shape[1])] for row in range(shape[0])
    ]


def test_attacks_are_ordered_from_mild_to_strong_at_the_headline_epsilon():
    figure = heatmaps.attack_heatmap(results(), HEADLINE)
    names = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert names == ["clean", "fgsm", "square *", "pgd", "ensemble"]
    for axes in figure.axes[:2]:
        assert cells(axes) == [
            [".90", ".70", ".60", ".50", ".40"],
            [".80", ".60", ".50", ".40", ".30"],
        ]
        assert [label.get_text() for label in axes.get_yticklabels()] == [
            "supervised",
            "rocl †",
        ]
    assert "on fewer records" in figure._supxlabel.get_text()
    assert "gradient-masking" in figure._supxlabel.get_text()


def test_an_attack_that_an_arm_was_not_given_leaves_its_cell_empty():
    table = results()
    table = table[(table["arm"] != "rocl") | (table["attack"] != "pgd")]
    assert cells(heatmaps.attack_heatmap(table, HEADLINE).axes[0])[1] == [
        ".80",
        ".60",
        ".50",
        "–",
        ".30",
    ]


def test_corruptions_stand_side_by_side_with_their_severities():
    figure = heatmaps.corruption_heatmap(results())
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == [
        "0",
        "1",
        "2",
    ]
    shown = [[".90", ".70", ".60"], [".80", ".60", ".50"]]
    assert [row[:3] for row in cells(figure.axes[0])] == shown
    assert cells(figure.axes[1]) == [[".90", "–", "–"], [".80", "–", "–"]]
    assert "muscle" in {text.get_text() for text in figure.axes[0].texts}
    with pytest.raises(StudyError, match="no natural corruptions"):
        heatmaps.corruption_heatmap(results().query("attack != 'muscle'"))


def test_headline_rows_leave_out_corruptions_and_other_budgets_also_under_transfer():
    table = results()
    kept = plotting.at_headline(table, HEADLINE)
    assert len(kept) == 20
    assert set(kept["auroc_shared"].round(2)) == {0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3}
    transferred = plotting.at_headline(
        table[table["dataset"] == "one"].assign(protocol="slf@two"), HEADLINE
    )
    assert set(transferred["attack"]) == {"none"}


def uses():
    rows = [
        {"arm": arm, "attack": attack, "kind": kind, "name": name, "share": share, "size": size,
         "masking_ok": arm == "rocl"}
        for arm in ("rocl", "simclr") for attack in ("noise", "pgd")
        for kind, names in {"band": ("low", "high"), "lead": ("II",)}.items()
        for name, size in zip(names, (0.2, 0.8), strict=False)
        for share in [size if attack == "noise" else {"low": 0.5, "high": 0.5, "II": 1.0}[name]]
    ]  # fmt: skip
    return pd.DataFrame(rows)


def test_use_is_energy_over_size_and_single_leads_are_not_drawn():
    figure = heatmaps.use_heatmap(uses())
    panel, bar = figure.axes
    assert cells(panel) == [["1.0", "1.0"], ["2.5", "0.62"]]
    assert [label.get_text() for label in panel.get_xticklabels()] == [
        "low (20 %)",
        "high (80 %)",
    ]
    assert [label.get_text() for label in panel.get_yticklabels()] == ["noise", "pgd"]
    assert bar.get_ylabel() == "energy over that of white noise"
    by_arm = heatmaps.use_heatmap(uses(), "arm").axes[0]
    assert [label.get_text() for label in by_arm.get_yticklabels()] == [
        "rocl",
        "simclr †",
    ]


def test_values_can_be_read_on_their_cells():
    """Contrast of at least 3 (WCAG, large text) between every value and its cell."""
    table = results()
    table["auroc_shared"] = np.linspace(0, 1, len(table))
    axes = heatmaps.attack_heatmap(table, HEADLINE).axes[0]
    image = axes.images[0]
    for text in axes.texts:
        column, row = (round(v) for v in text.get_position())
        cell = image.cmap(image.norm(image.get_array()[row, column]))[:3]
        light, dark = sorted(
            (luminance(cell), luminance(to_rgb(text.get_color()))), reverse=True
        )
        assert (light + 0.05) / (dark + 0.05) > 3


def luminance(colour):
    return np.dot(
        [0.2126, 0.7152, 0.0722],
        [c / 12.92 if c < 0.04 else ((c + 0.055) / 1.055) ** 2.4 for c in colour],
    )
