"""What decides a step's key, and what makes a step out of date."""

import json
import os
import subprocess
import sys

import pytest

from ecgstudy.files import ROOT, SUMS, sha256, write_json
from ecgstudy.pretraining import weighting
from ecgstudy.registry import ARMS, PLUGIN, WEIGHTINGS, load_plugins, plugin_files
from ecgstudy.running import cache, workflow
from ecgstudy.running.cache import FILES, RESULTS_VERSION, steps
from ecgstudy.study import Paths, Run, load_study


@pytest.fixture
def study():
    return load_study(ROOT / "params/tiny.yaml")


@pytest.fixture
def paths(tmp_path):
    return Paths("tiny", tmp_path)


def keys(study, paths, arm="rocl"):
    """Keys of the pretraining and of the evaluation of one arm."""
    run = Run(study, "builtin", arm, 0)
    pretrained = cache.pretrain_step(run, paths)
    return pretrained.key, cache.evaluate_step(run, "slf", paths).key


def finish(step):
    """Leave what a finished step leaves."""
    write_json(step.folder / "run.json", step.content)
    for name in FILES[step.name]:
        (step.folder / name).write_text(f"{step} {name}")
    lines = [f"{sha256(step.folder / n)}  {n}\n" for n in FILES[step.name]]
    (step.folder / SUMS).write_text("".join(lines))
    write_json(step.marker, {"key": step.key, "seconds": 1.0})


@pytest.fixture
def finished(study, paths):
    """The steps of a study that is finished, pages included."""
    done = steps(study, paths)
    for step in done.values():
        finish(step)
    paths.report.mkdir()
    for page in cache.report_pages(study, paths):
        page.write_text("kept")
    return done


def late(study, paths, **how):
    """Names of the steps that are out of date, data aside."""
    found = workflow.out_of_date(study, paths, **how)
    known = steps(study, paths)
    return [str(known[f]) for f in found if known[f].name != "prepare"]


def test_every_step_is_out_of_date_until_it_is_done_with_its_key(study, paths):
    assert len(late(study, paths)) == len(steps(study, paths)) - 1 == 5
    for step in steps(study, paths).values():
        finish(step)
    write_json(paths.tables / "provenance.json", {"key": "another"})
    assert late(study, paths)[-1] == "figures"


def test_a_finished_study_has_nothing_to_do_whatever_its_files_times(
    study, paths, finished
):
    for number, path in enumerate(paths.home.rglob("*")):
        os.utime(path, (1.7e9, 1.7e9 + number * 7919 % 1000))
    assert late(study, paths) == []


def test_data_that_are_not_there_make_nothing_out_of_date(study, paths, finished):
    (paths.data("builtin") / "signals.npy").unlink()
    (paths.data("builtin") / "provenance.json").unlink()
    assert late(study, paths) == []


@pytest.mark.parametrize("damage", ["deleted", "cut", "flipped"])
def test_a_damaged_file_and_all_that_rests_on_it_are_made_again(
    damage, study, paths, finished
):
    assert late(study, paths) == []
    path = paths.run("builtin", "rocl", 0) / "encoder.safetensors"
    content = path.read_bytes()
    if damage == "deleted":
        path.unlink()
    else:
        path.write_bytes(content[:-1] if damage == "cut" else b"R" + content[1:])
    assert late(study, paths) == [
        "pretrain builtin rocl seed 0",
        "evaluate builtin rocl seed 0 slf",
        "figures",
    ]


def test_files_of_the_same_size_and_time_are_read_again_only_on_request(
    study, paths, finished, monkeypatch
):
    assert late(study, paths) == []
    path = paths.protocol("builtin", "rocl", 0, "slf") / "scores.parquet"
    seen = path.stat()
    path.write_bytes(b"E" + path.read_bytes()[1:])
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    with monkeypatch.context() as patch:
        patch.setattr(workflow, "sha256", pytest.fail)
        assert late(study, paths) == []
    assert late(study, paths, verify=True) == [
        "evaluate builtin rocl seed 0 slf",
        "figures",
    ]


def test_a_deleted_page_whose_notebook_is_gone_is_made_again(study, paths, finished):
    (paths.report / "index.html").unlink()
    assert late(study, paths) == ["figures"]
    (paths.tables / "04_figures.ipynb").write_text("there")
    assert late(study, paths) == []


def test_the_headline_budget_retrains_only_arms_with_an_adversary(study, paths):
    options = study.datasets["builtin"].model_copy(update={"headline_epsilon_mv": 0.05})
    other = study.model_copy(update={"datasets": {"builtin": options}})
    for arm, retrained in (("supervised", False), ("rocl", True)):
        before, after = keys(study, paths, arm), keys(other, paths, arm)
        assert (before[0] != after[0]) == retrained
        assert before[1] != after[1]


def test_what_jobs_ask_for_changes_no_step(study, paths):
    asked = {rule: {"mem_mb": 1, "runtime": 2, "gpus": 3} for rule in FILES}
    other = type(study).model_validate({**study.model_dump(), "resources": asked})
    found = [[s.key for s in steps(each, paths).values()] for each in (study, other)]
    assert found[0] == found[1]


@pytest.mark.parametrize("step", FILES)
def test_a_new_version_of_results_makes_that_step_and_all_after_it_again(
    step, study, paths, finished, monkeypatch
):
    monkeypatch.setitem(RESULTS_VERSION, step, 2)
    first = {"prepare": 0, "pretrain": 0, "evaluate": 2, "figures": 4}[step]
    assert late(study, paths) == [*map(str, finished.values())][1:][first:]


def test_a_change_of_our_own_code_changes_no_key(study, paths, monkeypatch):
    before = keys(study, paths, "rocl-ip-hn")
    monkeypatch.setitem(WEIGHTINGS, "hard-negatives", weighting.push_hard_negatives)
    assert keys(study, paths, "rocl-ip-hn") == before


SCHEME = """
from ecgstudy.pretraining.arms import Arm
from ecgstudy.registry import ARMS, WEIGHTINGS
import helpers

WEIGHTINGS["mine"] = lambda similarity, pairs, weights: weights
ARMS["mine"] = Arm("adaptive", "an idea", "here", base="rocl")
"""


@pytest.fixture
def plugin(tmp_path):
    """Loads a plugin of an arm, beside a helper; forgets it afterwards."""
    (tmp_path / "helpers.py").write_text("BETA = 1\n")

    def load(text=SCHEME):
        forget()
        (tmp_path / "scheme.py").write_text(text)
        load_plugins(str(tmp_path / "scheme.py"))

    def forget():
        for name in [n for n in sys.modules if n.startswith(PLUGIN) or n == "helpers"]:
            del sys.modules[name]

    yield load
    forget()
    for registry in (ARMS, WEIGHTINGS):
        registry.pop("mine", None)
        registry.plugins.pop("mine", None)


def test_a_plugins_text_counts_for_the_steps_that_use_it_and_no_others(
    plugin, study, paths, tmp_path
):
    plugin()
    mine, rocl = keys(study, paths, "mine"), keys(study, paths, "rocl")
    plugin(SCHEME + "# changed\n")
    changed = keys(study, paths, "mine")
    assert not set(changed) & set(mine)
    (tmp_path / "helpers.py").write_text("BETA = 2\n")
    plugin(SCHEME + "# changed\n")
    assert not set(keys(study, paths, "mine")) & set(changed)
    assert keys(study, paths, "rocl") == rocl


def test_helpers_count_that_lie_beside_a_plugin_and_not_what_is_installed(tmp_path):
    for name, text in {
        "a": "import numpy, b\nfrom os import path",
        "b": "from c import x",
        "c": "import a",
        "d": "",
    }.items():
        (tmp_path / f"{name}.py").write_text(text)
    found = [path.name for path in plugin_files(tmp_path / "a.py")]
    assert found == ["a.py", "b.py", "c.py"]


def test_keys_need_no_torch():
    code = (
        "import sys; from ecgstudy.study import load_study;"
        "from ecgstudy.running import workflow;"
        "study = load_study('params/ptbxl.yaml'); workflow.late_steps(study);"
        "slow = ('torch', 'scipy', 'sklearn', 'matplotlib', 'wfdb', 'papermill');"
        "print([name for name in slow if name in sys.modules])"
    )
    call = [sys.executable, "-c", code]
    ran = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


def test_run_json_is_rewritten_only_when_its_content_changes(study, paths):
    step = cache.pretrain_step(Run(study, "builtin", "rocl", 0), paths)
    workflow.begin([step])
    path = step.folder / "run.json"
    before = path.stat().st_ino
    workflow.begin([step])
    assert path.stat().st_ino == before
    assert json.loads(path.read_text())["key"] == step.key


def test_the_tables_that_a_study_must_have_are_those_that_it_writes():
    tables = (ROOT / "outputs/mitdb/tables").glob("*.csv")
    assert sorted(path.name for path in tables) == list(FILES["figures"])


def test_results_are_kept_when_other_ones_are_asked_for_and_not_begun(
    study, paths, finished
):
    training = study.training.model_copy(update={"learning_rate": 0.5})
    other = study.model_copy(update={"training": training})
    workflow.begin(steps(other, paths).values())
    assert late(study, paths) == []
    evaluated = paths.protocol("builtin", "rocl", 0, "slf")
    finish(steps(other, paths)[evaluated.parent])  # another encoder, in its place
    assert late(study, paths) == [
        "pretrain builtin rocl seed 0",
        "evaluate builtin rocl seed 0 slf",
        "figures",
    ]
