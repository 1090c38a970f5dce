"""Several studies as one: their tables are joined, the primary family and the claims cover all of them."""

import json

import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from scipy import stats

from ecgstudy.analysis.claims import CLAIMS
from ecgstudy.errors import StudyError
from ecgstudy.running.html import check_self_contained
from ecgstudy.running.pages.across import across, main, write_report
from ecgstudy.study import Paths, Study

COST = ["dataset", "arm", "seed", "protocol", "step_ms"]


def a_study(name, dataset="mitdb"):
    return Study.model_validate({
        "study": name, "title": name, "datasets": {dataset: {"headline_epsilon_mv": 0.02}},
        "arms": ["rocl"], "seeds": [0, 1, 2], "training": {"epochs": 1},
    })  # fmt: skip


def contrast(dataset, delta, p, protocol="slf", family="primary"):
    """Robust and clean rows of rocl-hn − rocl with three seeds."""
    both = {
        "dataset": dataset,
        "protocol": protocol,
        "adaptive": "rocl-hn",
        "standard": "rocl",
        "delta": delta,
    }
    both |= {
        "se": 0.001,
        "df": 20.0,
        "beyond_seeds": True,
        "masking_ok": True,
        "seed_list": "0 1 2",
        "p": p,
    }
    both |= {
        "mde": np.nan,
        "heavy": 0.0,
        "seeds": 3,
        "ci_low": delta - 0.002,
        "ci_high": delta + 0.002,
    }
    robust = {
        "attack": "ensemble",
        "epsilon_mv": 0.02,
        "headline": True,
        "family": family,
        "p_holm": p,
    }
    clean = {
        "attack": "none",
        "epsilon_mv": 0.0,
        "headline": False,
        "family": "exploratory",
    }
    return [both | robust, both | clean]


def write(root, name, *rows):
    folder = Paths(name, root).tables
    folder.mkdir(parents=True)
    pd.DataFrame([row for pair in rows for row in pair]).to_csv(
        folder / "contrasts.csv", index=False
    )
    pd.DataFrame(columns=COST).to_csv(folder / "cost.csv", index=False)
    return a_study(name)


def test_holm_covers_the_primary_families_of_all_studies(tmp_path):
    one = write(tmp_path, "one", contrast("mitdb", 0.05, 0.02))
    two = write(tmp_path, "two", contrast("ptbxl", 0.05, 0.03))
    contrasts = across([one, two], tmp_path)["contrasts"]
    primary = contrasts[contrasts["family"] == "primary"]
    np.testing.assert_allclose(primary["p_holm"], [0.04, 0.04])
    assert primary["study"].tolist() == ["one", "two"]
    half = 0.001 * stats.t.ppf(1 - 0.025 / 2, 20)  # each at 2.5 %
    np.testing.assert_allclose(primary["joint_low"], 0.05 - half, rtol=1e-5)
    np.testing.assert_allclose(primary["joint_high"], 0.05 + half, rtol=1e-5)
    np.testing.assert_allclose(
        primary["mde"], half + 0.001 * stats.t.ppf(0.8, 20), rtol=1e-5
    )
    rest = contrasts[contrasts["family"] == "exploratory"]
    assert rest[["p_holm", "joint_low", "joint_high", "mde"]].isna().all(axis=None)


def test_a_difference_that_no_study_could_find_is_1(tmp_path):
    wide = [row | {"se": 0.4} for row in contrast("mitdb", 0.05, 0.9)]
    row = (
        across([write(tmp_path, "one", wide)], tmp_path)["contrasts"]
        .query("family == 'primary'")
        .iloc[0]
    )
    assert (row["joint_low"], row["mde"]) == (
        pytest.approx(0.05 - 0.4 * stats.t.ppf(0.975, 20)),
        1.0,
    )


def test_a_claim_needs_every_data_set_of_all_studies(tmp_path):
    supported = write(tmp_path, "one", contrast("mitdb", 0.05, 0.001))
    against = write(tmp_path, "two", contrast("ptbxl", -0.05, 0.001))
    assert across([supported], tmp_path)["claims"]["verdict"][1] == "supported"
    claims = across([supported, against], tmp_path)["claims"]
    assert claims["verdict"][1] == "inconclusive"
    assert "mitdb" in claims["evidence"][1]
    assert "ptbxl" in claims["evidence"][1]
    assert len(claims) == len(CLAIMS)


def test_a_place_that_two_studies_have_counts_once(tmp_path):
    one = write(tmp_path, "one", contrast("ptbxl", 0.05, 0.02))
    again = contrast("ptbxl", 0.9, 0.5, family="exploratory")
    other = write(
        tmp_path, "two", again, contrast("ptbxl", 0.1, 0.2, "slf@mitdb", "exploratory")
    )
    contrasts = across([one, other], tmp_path)["contrasts"]
    assert contrasts["delta"].tolist() == [0.05, 0.05, 0.1, 0.1]
    assert across([other, one], tmp_path)["contrasts"]["delta"].tolist() == [
        0.9,
        0.9,
        0.1,
        0.1,
    ]


def test_studies_without_comparisons_or_with_empty_columns_add_nothing(tmp_path):
    one = write(tmp_path, "one", contrast("mitdb", 0.05, 0.02))
    two = write(tmp_path, "two", contrast("ptbxl", 0.05, 0.03))
    table = pd.read_csv(Paths("two", tmp_path).tables / "contrasts.csv").assign(
        severity=np.nan
    )
    table.iloc[:0].to_csv(Paths("two", tmp_path).tables / "contrasts.csv", index=False)
    contrasts = across([one, two], tmp_path)["contrasts"]
    assert contrasts["dataset"].tolist() == ["mitdb", "mitdb"]
    assert contrasts["severity"].isna().all()
    table.to_csv(Paths("two", tmp_path).tables / "contrasts.csv", index=False)
    assert (
        across([one, two], tmp_path)["contrasts"]["dataset"].tolist()
        == ["mitdb"] * 2 + ["ptbxl"] * 2
    )


def test_a_study_without_tables_is_named(tmp_path):
    one = write(tmp_path, "one", contrast("mitdb", 0.05, 0.02))
    with pytest.raises(
        StudyError, match=r"contrasts\.csv is missing; run `make study STUDY=two` first"
    ):
        across([one, a_study("two")], tmp_path)


def test_the_command_writes_tables_and_report(tmp_path, monkeypatch, capsys):
    write(tmp_path, "one", contrast("mitdb", 0.05, 0.02))
    params = tmp_path / "one.yaml"
    params.write_text(a_study("one").model_dump_json())
    monkeypatch.setattr(Paths, "home", property(lambda self: tmp_path / self.study))
    main(["all", str(params)])
    assert capsys.readouterr().out.strip().endswith("all/report/index.html")
    assert {path.name for path in (tmp_path / "all" / "tables").iterdir()} == {
        "contrasts.csv",
        "claims.csv",
    }


def test_the_joint_report_answers_over_all_data_sets_and_links_to_the_studies(tmp_path):
    studies = [
        write(tmp_path, "one", contrast("mitdb", 0.05, 0.001)),
        write(tmp_path, "two", contrast("ptbxl", -0.05, 0.001)),
    ]
    report = Paths("two", tmp_path).report / "index.html"
    report.parent.mkdir()
    report.write_text("page")
    page = BeautifulSoup(
        write_report("all", studies, tmp_path).read_text(encoding="utf-8"),
        "html.parser",
    )
    assert (
        "Mixed. Of 2 comparisons on MIT-BIH and PTB-XL"
        in page.find("p", class_="lead").get_text()
    )
    forest = page.find("table", class_="forest")
    assert [head.b.get_text() for head in forest.find_all("th", class_="plot")] == [
        "MIT-BIH",
        "PTB-XL",
    ]
    links = [a["href"] for a in page.find_all("a")]
    assert "../../two/report/index.html" in links
    assert "../../one/report/index.html" not in links  # was not made
    assert all(
        (tmp_path / "all/report" / link.partition("#")[0]).exists() for link in links
    )
    assert "rocl-hn − rocl +0.050" in page.find("img")["alt"]
    assert check_self_contained(str(page)) == []


def robust(dataset, arm, value):
    """Clean and attacked rows of one arm, all seeds together."""
    both = {
        "dataset": dataset,
        "arm": arm,
        "seed": "all",
        "protocol": "slf",
        "n_records": 9,
        "n_patients": 5,
        "n_unidentified": 0,
    }
    both |= {
        "auroc_label": value / 2,
        "masking_ok": True,
        "severity": np.nan,
        "ci_low": 0.1,
        "ci_high": 0.9,
    }
    return [
        {**both, "attack": "none", "epsilon_mv": 0.0, "auroc_shared": 0.9},
        {**both, "attack": "ensemble", "epsilon_mv": 0.02, "auroc_shared": value},
    ]


def test_the_joint_report_tells_every_arm_what_it_is_and_where_numbers_come_from(
    tmp_path,
):
    studies = [write(tmp_path, "one", contrast("mitdb", 0.05, 0.001)),
               write(tmp_path, "two", contrast("ptbxl", -0.05, 0.001))]  # fmt: skip
    for name, dataset, commit in (("one", "mitdb", "aaa"), ("two", "ptbxl", "bbb")):
        tables = Paths(name, tmp_path).tables
        pd.DataFrame(robust(dataset, "pgd-at", 0.5)).to_csv(
            tables / "robust_auroc.csv", index=False
        )
        (tables / "provenance.json").write_text(
            json.dumps({"commit": commit, "torch": "2.13"})
        )
        ended = pd.DataFrame(
            {"dataset": [dataset], "arm": "rocl", "negative_similarity": [-0.06]}
        )
        ended.to_csv(tables / "pretraining.csv", index=False)
    studies[1] = a_study("two", "ptbxl")
    page = BeautifulSoup(
        write_report("all", studies, tmp_path).read_text(encoding="utf-8"),
        "html.parser",
    )
    rows = [
        [c.get_text() for c in row.find_all("td")]
        for row in page.find(class_="arms").tbody.find_all("tr")
    ]
    assert [row[:2] for row in rows] == [["MIT-BIH", "pgd-at"], ["PTB-XL", "pgd-at"]]
    assert page.get_text().count("points can have it") == 2
    assert rows[0][3:] == [
        "0.500 [0.100, 0.900]",
        "0.250",
        "cross-entropy on attacked ECGs",
        "Madry et al. 2018",
    ]
    used = {row.th.get_text(): row.td.get_text() for row in page.footer.find_all("tr")}
    assert used == {"commit": "one: aaa | two: bbb", "torch": "2.13"}
    facts = page.find_all("section")[-1].get_text()
    assert "one: MIT-BIH: 9 records of 5 patients attacked | two: PTB-XL" in facts
