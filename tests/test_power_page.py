"""The page about seeds and patients states numbers that follow from the pilot's."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from ecgstudy.analysis import power as pw
from ecgstudy.errors import StudyError
from ecgstudy.study import Paths, Study
from tools import power_page as pp

NONE = pw.Components(patients=0.0, seeds=0.0, models=0.0, df_patients=21, pilot_seeds=3)


def sample_of(patients, records):
    return type(
        "Sample", (), {"names": np.arange(patients), "table": np.zeros(records)}
    )()


def test_the_page_states_numbers_that_follow_from_the_components():
    found = {
        "rocl-ip − rocl": replace(NONE, seeds=0.02**2),
        "rocl-hn − rocl": replace(NONE, patients=0.01**2),
    }
    text = pp.write_page(
        [pp.Pilot("mitdb", 0.02, sample_of(22, 500), found)], "`params/mitdb.yaml`"
    )
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if "|" in line]
    row = next(r for r in rows if r[:2] == ["rocl-ip − rocl", "0.02"])
    assert row[2] == "10"
    assert row[4] == str(pw.seeds_needed(found["rocl-ip − rocl"], 0.02, 0.05 / 8))
    row = next(r for r in rows if r[:2] == ["rocl-hn − rocl", "0.01"])
    assert row[2] == row[4] == pp.NEVER
    factor = pw.patients_needed(found["rocl-hn − rocl"], 0.01)
    assert row[6] == str(int(np.ceil(22 * factor)))
    # s² (seeds − 1) / χ², for half of 0.02²
    low, high = 0.02 / np.sqrt(stats.chi2.ppf([0.9, 0.1], 2))
    assert [
        "mean variances",
        "0.0071",
        "0.0141",
        f"{low:.4f} to {high:.4f}",
        "0.0000",
    ] in rows
    assert "22 test patients, 500 records, ε = 0.02 mV" in text


def test_a_study_without_the_primary_contrasts_is_named(tmp_path):
    study = Study(
        study="small",
        title="No scores",
        datasets={"mitdb": {"headline_epsilon_mv": 0.02}},
        arms=["rocl"],
        seeds=[0],
        training={"epochs": 1},
    )
    with pytest.raises(
        StudyError, match="study 'small' has no scores under 'ensemble'"
    ):
        pp.read_pilots(study, Paths("small", tmp_path))
