"""Whoever cites the study finds its version and every data set in ``CITATION.cff``."""

import re

import yaml

import ecgstudy
from ecgstudy.study import ROOT

CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))


def test_the_version_cited_is_that_of_the_package():
    assert CITATION["version"] == ecgstudy.__version__


def test_every_data_set_of_the_data_cards_can_be_cited():
    cards = (ROOT / "docs/data.md").read_text(encoding="utf-8")
    needed = set(re.findall(r"doi (10\.[^\s,)]+)", cards))
    assert needed == {
        entry["doi"] for entry in CITATION["references"] if entry["type"] == "data"
    }
