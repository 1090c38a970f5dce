"""Results that outlive a change of code: adopted when a recomputed few agree, refused when they do not."""

import json
import shutil

import pandas as pd
import pytest
from safetensors.torch import load_file, save_file

from ecgstudy.errors import StudyError
from ecgstudy.evaluation.runner import evaluate
from ecgstudy.pretraining.loop import pretrain
from ecgstudy.running import adopt as ad
from ecgstudy.running import workflow
from ecgstudy.running.provenance import is_done, settings
from ecgstudy.study import ROOT, Paths, load_study


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The tiny study's encoders and evaluations, done with small budgets, and the root of its outputs."""
    study = load_study(ROOT / "params/tiny.yaml")
    budget = {
        "attacks": [],
        "corruptions": [],
        "epsilons_mv": [0.02],
        "steps": 2,
        "check_steps": 2,
    }
    budget |= {"check_restarts": 1, "label_steps": 2, "queries": 2}
    study = study.model_copy(
        update={"evaluation": study.evaluation.model_copy(update=budget)}
    )
    root = tmp_path_factory.mktemp("outputs")
    paths = Paths(study.study, root)
    workflow.plan(study, paths)
    records = workflow.prepared_records(study, "builtin", paths)
    for run in study.runs():
        folder = paths.run(run.dataset, run.arm, run.seed)
        pretrain(run, records, folder)
        evaluate(run, records, folder / "slf", "slf")
        for where in (folder, folder / "slf"):
            asked = json.loads((where / "run.json").read_text())
            done = {"stamp": asked["stamp"], "settings": settings(asked)}
            (where / "provenance.json").write_text(json.dumps(done))
    return study, root


@pytest.fixture
def other_code(finished, tmp_path, monkeypatch):
    """The same outputs after a change of the code that everything rests on."""
    study, root = finished
    shutil.copytree(root, tmp_path / "outputs")
    monkeypatch.setattr(workflow, "PRETRAIN_CODE", (*workflow.PRETRAIN_CODE, load_file))
    return study, Paths(study.study, tmp_path / "outputs")


def out_of_date(study, paths):
    workflow.plan(study, paths)
    results = [
        r for run in study.runs() for r in (ad.Result(run), ad.Result(run, "slf"))
    ]
    return [str(r) for r in results if not is_done(r.step(paths).folder)]


def test_the_others_are_adopted_when_the_recomputed_agree(other_code):
    study, paths = other_code
    assert len(out_of_date(study, paths)) == 4
    found = ad.adopt(study, paths, checks=1)
    assert list(found.values()) == [0.0, 0.0]
    assert out_of_date(study, paths) == []
    for run in study.runs():
        folder = paths.run(run.dataset, run.arm, run.seed)
        done = json.loads((folder / "provenance.json").read_text())
        assert len(done["adopted"]) == 1
        assert done["adopted"][0]["was"] != done["stamp"]
        assert set(done["adopted"][0]["recomputed"]) < set(found)
        records = workflow.prepared_records(study, "builtin", paths)
        before = (folder / "encoder.safetensors").stat().st_mtime_ns
        pretrain(run, records, folder)  # knows itself again
        assert (folder / "encoder.safetensors").stat().st_mtime_ns == before
    assert ad.adopt(study, paths, checks=1) == {}


def test_an_encoder_that_differs_in_one_weight_is_refused(other_code):
    study, paths = other_code
    for run in study.runs():
        path = paths.run(run.dataset, run.arm, run.seed) / "encoder.safetensors"
        state = load_file(path)
        name = next(
            n
            for n, value in state.items()
            if value.is_floating_point() and value.ndim > 1
        )
        state[name].view(-1)[0] += 0.5
        metadata = ad.load_tensors(path)[1]
        save_file(
            state, path, {key: json.dumps(value) for key, value in metadata.items()}
        )
    with pytest.raises(
        StudyError, match=r"rocl\S* seed 0 comes out differently: by 0\.\d+, more"
    ):
        ad.adopt(study, paths, checks=1)
    assert len(out_of_date(study, paths)) == 4


def test_scores_may_differ_by_the_tolerance_in_auroc_and_no_more(other_code):
    study, paths = other_code
    for run in study.runs():
        path = paths.protocol(run.dataset, run.arm, run.seed, "slf") / "scores.parquet"
        frame = pd.read_parquet(path)
        name = next(c for c in frame if c.startswith("score_"))
        clean = frame.index[(frame["attack"] == "none") & (frame["split"] == "test")]
        frame.loc[clean[:4], name] = -frame.loc[clean[:4], name]
        frame.to_parquet(path, index=False)
    with pytest.raises(
        StudyError, match=r"slf comes out differently: by 0\.\d+, more than 0; nothing"
    ):
        ad.adopt(study, paths, checks=2)
    assert len(out_of_date(study, paths)) == 2  # the encoders were adopted
    assert max(ad.adopt(study, paths, checks=2, tolerance=0.9).values()) > 0
    assert out_of_date(study, paths) == []


def test_other_settings_are_never_adopted(other_code):
    study, paths = other_code
    longer = study.model_copy(
        update={"training": study.training.model_copy(update={"epochs": 2})}
    )
    assert ad.adopt(longer, paths, checks=1) == {}
    assert len(out_of_date(longer, paths)) == 4


def test_without_any_check_nothing_is_adopted(other_code):
    study, paths = other_code
    with pytest.raises(StudyError, match="checks is 0; at least one"):
        ad.adopt(study, paths, checks=0)


def test_settings_are_all_but_stamps():
    asked = {
        "stamp": "0123456789abcdef",
        "seed": 1,
        "data": {"stamp": "a" * 16, "leads": ["II"]},
    }
    later = {"stamp": "f" * 16, "seed": 1, "data": {"stamp": "b" * 16, "leads": ["II"]}}
    assert settings(asked) == settings(later)
    assert settings(asked) != settings({**later, "seed": 2})
