"""No number changes unseen: short runs of everything give what ``golden.json`` holds.

`golden_runs` says how to store other numbers, where they are meant to change.
"""

import copy
import json
import math

import golden_runs
import pytest
from golden_numbers import differences, machine, tolerance

STORED = json.loads(golden_runs.STORED.read_text(encoding="utf-8"))
OTHERWISE = differences(STORED["machine"], machine())
"""How this machine differs from the one where the numbers were stored."""


@pytest.mark.skipif(bool(OTHERWISE), reason=f"another machine: {OTHERWISE[:1]}")
@pytest.mark.parametrize("name", golden_runs.RUNS)
def test_a_run_gives_the_stored_numbers_to_the_last_bit(name):
    check(name, within=None)


@pytest.mark.skipif(not OTHERWISE, reason="compared to the last bit on this machine")
@pytest.mark.parametrize("name", golden_runs.RUNS)
def test_a_run_gives_the_stored_numbers_within_tolerances(name):
    check(name, tolerance(name))


def check(name, within):
    found = golden_runs.compute(name)
    lines = differences(STORED["runs"][name], found, within)
    assert not lines, "\n".join([f"{len(lines)} numbers changed:", *lines[:20]])


def test_every_stored_run_is_still_made():
    assert list(STORED["runs"]) == list(golden_runs.RUNS)


def test_a_change_of_the_last_bit_is_a_difference_and_rounding_is_not_one_elsewhere():
    stored = {"loss": [1.25, 0.5], "scores": {"digest": "sha256:1", "rows": 3}}
    changed = copy.deepcopy(stored)
    changed["loss"][1] = math.nextafter(0.5, 1)
    assert differences(stored, stored) == []
    assert len(differences(stored, changed)) == 1
    assert differences(stored, changed, (1e-4, 1e-5)) == []
    changed["scores"] = {"digest": "sha256:2", "rows": 4}
    assert len(differences(stored, changed)) == 3
    assert len(differences(stored, changed, (1e-4, 1e-5))) == 1
    changed["loss"][1] = 0.6
    assert len(differences(stored, changed, (1e-4, 1e-5))) == 2
