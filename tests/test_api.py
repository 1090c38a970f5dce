"""What users call: one import, nothing deeper."""

import subprocess
import sys

import pandas as pd
import pytest

import ecgstudy as es
from ecgstudy.files import ROOT


@pytest.fixture(scope="module")
def study():
    return es.load_study(ROOT / "params/ptbxl.yaml")


def test_every_public_name_is_there():
    assert [name for name in es.__all__ if not hasattr(es, name)] == []
    assert set(es.__all__) <= set(dir(es))
    with pytest.raises(AttributeError, match="no attribute 'lod_study'"):
        es.lod_study  # noqa: B018


def test_a_params_file_is_read_without_torch():
    code = (
        "import sys, ecgstudy as es; study = es.load_study('params/ptbxl.yaml');"
        "study.run('ptbxl', 'rocl-hn'); list(study.runs());"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize(
    ("chosen", "named"),
    [
        (("mitdb", "rocl", 0), "mitdb"),
        (("ptbxl", "rolc", 0), "rolc"),
        (("ptbxl", "rocl", 7), "7"),
    ],
)
def test_a_run_that_the_study_does_not_have_is_refused(study, chosen, named):
    with pytest.raises(es.StudyError, match=named) as caught:
        study.run(*chosen)
    assert "\n" not in str(caught.value)


def test_stored_scores_are_read_and_not_attacked_again(study, monkeypatch):
    from ecgstudy.evaluation import runner

    monkeypatch.setattr(runner, "evaluate", pytest.fail)
    scores = study.run("ptbxl", "rocl", seed=1).evaluate("slf")
    clean = [s for s in scores.select() if s.attack == "none"]
    table = pd.read_csv(ROOT / "outputs/ptbxl/tables/robust_auroc.csv")
    known = table.query("arm == 'rocl' and seed == '1' and attack == 'none'")
    assert clean[0].macro == pytest.approx(known["auroc_shared"].item(), abs=1e-6)


def test_a_protocol_that_the_study_does_not_have_is_refused(study):
    with pytest.raises(es.StudyError, match="protocol 'slff'"):
        study.run("ptbxl", "rocl").evaluate("slff")


def test_one_decorator_adds_each_kind_of_part(monkeypatch):
    from ecgstudy import registry

    for kind, entries in (
        (es.weighting, registry.WEIGHTINGS),
        (es.encoder, registry.ENCODERS),
        (es.dataset, registry.DATASETS),
        (es.attack, registry.ATTACKS),
        (es.corruption, registry.CORRUPTIONS),
    ):
        monkeypatch.setitem(entries, "mine", None)  # taken away afterwards

        @kind("mine")
        def mine(): ...

        assert entries.find("mine") is mine
