"""Arms look the same in every figure; figures are the same files each time."""

import base64

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from drawn import contrast_table, robust_table, texts
from PIL import Image

from ecgstudy import plots
from ecgstudy.files import ROOT
from ecgstudy.plots.style import (
    SYNTHETIC,
    arm_colour,
    arm_look,
    arm_marker,
    flag_arms,
    short_attack,
)
from ecgstudy.registry import ARMS
from ecgstudy.study import load_study


def a_figure():
    pairs = [("rocl-ip", "rocl", 0.02)]
    return plots.forest(contrast_table(pairs), robust_table(["rocl", "rocl-ip"]))


def test_an_arm_has_one_colour_and_weightings_share_theirs():
    same = ["rocl-ip-hn", "advcl-ip-hn", "rocl-ip-hn-shuffled", "rocl-ip-hn †"]
    assert len({arm_colour(arm) for arm in same}) == 1
    assert arm_colour("rocl-hn") == arm_colour("hcl")
    five = ["rocl", "rocl-ip", "rocl-hn", "rocl-ip-hn", "rocl-clef"]
    assert len({arm_colour(arm) for arm in five}) == 5
    assert all(arm_colour(arm).startswith("#") for arm in ARMS.names())
    assert arm_colour("of-a-plugin").startswith("#")


@pytest.mark.parametrize("params", ["mitdb", "ptbxl", "transfer", "single-step"])
def test_no_two_arms_of_a_study_look_alike(params):
    arms = load_study(ROOT / "params" / f"{params}.yaml").arms
    assert len({(arm_colour(arm), arm_marker(arm)) for arm in arms}) == len(arms) > 1


def test_variants_have_the_colour_of_their_arm_and_a_line_and_marker_of_their_own():
    arms = ["rocl-hn", "rocl-hn-rsfgsm", "rocl-hn-nfgsm", "rocl-hn-shuffled"]
    looks = [arm_look(arm) for arm in arms]
    assert len({look["color"] for look in looks}) == 1
    assert len({look["marker"] for look in looks}) == 4
    assert len({look["linestyle"] for look in looks}) == 4


def test_arms_that_fail_a_masking_check_have_a_dagger_and_are_hollow():
    table = pd.DataFrame({"arm": ["a", "a", "b", "c"]})
    for checks in ([False, True, True, None], ["", "", "", ""]):
        flagged = flag_arms(table.assign(masking_ok=checks))
        expected = ["a †", "a †", "b", "c"] if checks[0] is False else list("aabc")
        assert list(flagged["arm"]) == expected
    assert arm_look("rocl †")["markerfacecolor"] == "white"
    assert arm_look("rocl")["markerfacecolor"] == arm_colour("rocl")


def test_many_leads_of_an_attack_are_counted():
    assert short_attack("apgd-margin[V1+V2+V3]") == "apgd-margin [3 leads]"
    assert short_attack("apgd-margin[I+II]") == "apgd-margin[I+II]"


def test_a_saved_figure_is_the_same_bytes_each_time(tmp_path):
    values = pd.DataFrame({"arm": ["rocl"], "auroc": [0.1 + 0.2]})
    for folder in ("a", "b"):
        plots.save_figure(a_figure(), tmp_path / folder, "forest", values, "Δ")
    for kind in ("png", "svg", "csv"):
        first, second = (tmp_path / f / f"forest.{kind}" for f in ("a", "b"))
        assert first.read_bytes() == second.read_bytes()
    read = pd.read_csv(tmp_path / "a/forest.csv", float_precision="round_trip")
    assert read.equals(values)
    assert len(list((tmp_path / "a").iterdir())) == 3


@pytest.mark.parametrize("synthetic", [True, False])
def test_a_saved_figure_is_described_and_says_whether_it_is_simulated(
    tmp_path, synthetic
):
    figure, values = a_figure(), pd.DataFrame({"x": [1]})
    folder = tmp_path / "figures"
    html = plots.save_figure(figure, folder, "f", values, "Δ <of> arms", synthetic).data
    assert (SYNTHETIC in texts(figure)) is synthetic
    with Image.open(folder / "f.png") as image:
        assert image.text["Description"] == "Δ <of> arms"
        assert image.info["dpi"][0] >= 150
    assert "of&gt; arms" in (folder / "f.svg").read_text(encoding="utf-8")
    assert 'alt="Δ &lt;of&gt; arms"' in html
    assert base64.b64encode((folder / "f.png").read_bytes()).decode() in html
    for kind in ("svg", "png", "csv"):
        assert f'href="../figures/f.{kind}"' in html


def test_figures_leave_no_global_state():
    before = dict(plt.rcParams)
    a_figure()
    plots.class_counts(
        pd.DataFrame({"class": ["N"], "split": ["train"], "records": [1]})
    )
    assert dict(plt.rcParams) == before
    assert plt.get_fignums() == []
