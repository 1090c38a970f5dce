"""The command line: one line for an error, two for Ctrl-C, a plugin and folder of one's own."""

import os
import signal
import subprocess
import sys
import time

import pytest
from test_workflow import checkout, run_tiny

from ecgstudy.registry import ARMS, PLUGIN, WEIGHTINGS
from ecgstudy.running import cache, engine, headline, workflow
from ecgstudy.running.cli import main
from ecgstudy.study import ROOT, load_study

TINY = str(ROOT / "params/tiny.yaml")


@pytest.fixture(autouse=True)
def forget_plugins(monkeypatch):
    """What a plugin registers, and where it lies, concerns one test alone."""
    monkeypatch.setenv("ECGSTUDY_PLUGINS", "")
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    yield
    for name in [name for name in sys.modules if name.startswith(PLUGIN)]:
        del sys.modules[name]
    for registry in (ARMS, WEIGHTINGS):
        for name in [name for name in registry if "my-idea" in name]:
            del registry[name], registry.plugins[name]


def test_an_error_is_one_line(tmp_path, capsys):
    bad = tmp_path / "bad.yaml"
    bad.write_text((ROOT / "params/tiny.yaml").read_text() + "colour: red\n")
    assert main(["plan", str(bad)]) == 1
    error = capsys.readouterr().err
    assert error == f"error: {bad}: unknown key 'colour' (value 'red')\n"


def test_ctrl_c_ends_in_two_lines_what_is_kept_and_how_to_go_on(monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(workflow, "run_study", interrupt)
    assert main(["study", TINY, "--cores", "2"]) == 130
    kept, further = capsys.readouterr().err.splitlines()
    assert "kept" in kept
    assert further.endswith(f"ecgstudy study {TINY} --cores 2")


@pytest.mark.slow
@pytest.mark.parametrize("whole_group", [True, False])
def test_nothing_goes_on_after_ctrl_c(whole_group, tmp_path):
    """A terminal interrupts all processes, `kill -INT` one of them."""
    folder = checkout(tmp_path / "whole")
    call = [sys.executable, "-m", "ecgstudy", "study", "params/tiny.yaml"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    study = subprocess.Popen(call, cwd=folder, start_new_session=True, **pipes)
    while not list((folder / "outputs/tiny/logs").glob("02_pretrain*.ipynb")):
        assert study.poll() is None
        time.sleep(0.1)
    (os.killpg if whole_group else os.kill)(study.pid, signal.SIGINT)
    _, error = study.communicate(timeout=60)
    assert (study.returncode, len(error.splitlines())) == (130, 2)
    ours = ["pgrep", "-f", str(folder)]
    for _ in range(50):
        left = subprocess.run(ours, capture_output=True, text=True).stdout
        if not left:
            break
        time.sleep(0.1)
    assert not left
    assert run_tiny(folder) == 0


def test_a_new_study_is_complete_in_a_folder_of_its_own(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["new", "my-idea"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == (
        "to run it: ecgstudy study my-idea/my-idea.yaml"
    )
    study = load_study("my-idea/my-idea.yaml")
    assert study.arms[-1] == "rocl-my-idea"
    assert study.paths.home == tmp_path / "my-idea/outputs/my-idea"
    step = cache.pretrain_step(list(study.runs())[-1], study.paths)
    assert step.parameters["plugins"][0].startswith("my-idea.py ")
    assert main(["new", "my-idea"]) == main(["new", "My idea"]) == 1


@pytest.mark.slow
def test_a_new_study_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["new", "my-idea"]) == 0
    assert main(["study", "my-idea/my-idea.yaml"]) == 0
    outputs = tmp_path / "my-idea/outputs/my-idea"
    assert "rocl-my-idea" in (outputs / "tables/contrasts.csv").read_text()
    assert (outputs / "report/index.html").exists()


def test_a_plugin_is_named_from_where_one_stands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["new", "my-idea"])
    (tmp_path / "my-idea/my-idea.py").rename(tmp_path / "plugin.py")
    params = "my-idea/my-idea.yaml"
    assert main(["plan", params]) == 1
    assert "unknown arm 'rocl-my-idea'" in capsys.readouterr().err
    assert main(["plan", params, "--plugin", "plugin.py"]) == 0
    assert os.environ["ECGSTUDY_PLUGINS"] == str(tmp_path / "plugin.py")
    assert "pretrain builtin rocl-my-idea seed 0: not made" in capsys.readouterr().out


def test_the_headline_is_chosen_on_validation_records_and_written_into_the_params(
    tmp_path, monkeypatch
):
    params = tmp_path / "mine.yaml"
    text = (ROOT / "params/tiny.yaml").read_text().replace("study: tiny", "study: mine")
    text = text.replace("arms: [rocl,", "arms: [supervised, rocl,")
    text = text.replace("epsilons_mv: [0.02]", "epsilons_mv: [0.005, 0.01, 0.02, 0.05]")
    params.write_text(text)
    curves = iter(
        [{0.005: 0.9, 0.01: 0.6, 0.02: 0.3}, {0.005: 0.8, 0.01: 0.3, 0.02: 0}]
    )
    made = []
    monkeypatch.setattr("ecgstudy.evaluation.runner.validation_curve",
                        lambda *_: next(curves))  # fmt: skip
    monkeypatch.setattr(headline, "prepared_records", lambda *_: None)
    monkeypatch.setattr(engine, "make", lambda study, todo, **where: made.extend(todo))
    params.write_text(text.replace("seeds: [0]", "seeds: [0, 1]"))
    assert headline.choose_headline(load_study(params)) == {"builtin": 0.01}
    assert {step.arguments.get("arm") for step in made} == {None, "supervised"}
    chosen = text.replace("headline_epsilon_mv: 0.02", "headline_epsilon_mv: 0.01")
    assert params.read_text() == chosen.replace("seeds: [0]", "seeds: [0, 1]")
