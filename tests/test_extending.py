"""The examples of docs/extend.md work as they stand there."""

import os
import re
import shutil
import sys

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from own_ward import EXAMPLES, shown, write_arrays, write_ward
from test_robustness import SHORT, evaluated
from test_workflow import checkout, run_tiny
from toy import toy_records, toy_run
from victims import aurocs, ecgs, linear, seeded

from ecgstudy.attacks import named as attacks
from ecgstudy.attacks.api import Budget
from ecgstudy.datasets import prepare as datasets
from ecgstudy.errors import StudyError
from ecgstudy.evaluation.attack_run import check_inside
from ecgstudy.models import backbones
from ecgstudy.models.checkpoints import load_classifier
from ecgstudy.models.encoders import build_encoder, fold_batch_norms
from ecgstudy.params import DatasetOptions
from ecgstudy.pretraining import arms, losses
from ecgstudy.pretraining.contrast import weighted_contrastive_loss
from ecgstudy.pretraining.pairs import Rows
from ecgstudy.pretraining.setup import prepare_training
from ecgstudy.pretraining.step import arm_loss
from ecgstudy.pretraining.suffixes import factor_table, get_arm
from ecgstudy.pretraining.weighting import compose, uniform
from ecgstudy.registry import PLUGIN, WEIGHTINGS, load_plugins
from ecgstudy.running import cache, workflow
from ecgstudy.study import ROOT, Paths, load_study

REGISTRIES = (
    arms.ARMS, WEIGHTINGS, losses.LOSSES, backbones.ENCODERS, datasets.DATASETS, attacks.ATTACKS
)  # fmt: skip


@pytest.fixture
def plugin(tmp_path):
    """Writes and loads a Python file that the EXAMPLES shows, as ``make study PLUGINS=…`` does."""
    before = [dict(registry) for registry in REGISTRIES]

    def load(name):
        code = shown(f"{name}.py")
        (tmp_path / f"{name}.py").write_text(code)
        load_plugins(str(tmp_path / f"{name}.py"))
        return code

    yield load
    for name in [name for name in sys.modules if name.startswith(PLUGIN)]:
        del sys.modules[name]
    for registry, known in zip(REGISTRIES, before, strict=True):
        registry.clear()
        registry.update(known)


def test_own_weighting_scheme_takes_at_most_fifteen_lines(plugin):
    assert (
        len([line for line in plugin("my_weighting").splitlines() if line.strip()])
        <= 15
    )


def test_own_weighting_scheme_changes_the_loss_as_it_says(plugin):
    plugin("my_weighting")
    generator = torch.Generator().manual_seed(0)
    z = torch.nn.functional.normalize(
        torch.randn(18, 8, generator=generator, dtype=torch.float64), dim=1
    )
    index = torch.arange(6).repeat(3)
    rows = Rows(index, index, torch.arange(18) >= 12)
    weighting = compose(get_arm("rocl-mine").weighting)
    mine, log = weighted_contrastive_loss(z, rows, weighting, temperature=0.5)
    standard, _ = weighted_contrastive_loss(z, rows, uniform, temperature=0.5)
    assert mine != standard
    pushes = torch.tensor(
        [1.0] * 10 + [torch.e**0.5] * 5, dtype=torch.float64
    )  # 10 clean, 5 adversarial
    torch.testing.assert_close(
        log["effective_negatives"], pushes.sum() ** 2 / (pushes**2).sum()
    )
    assert factor_table()["adversarial_negatives"].loc["rocl-mine"]


def test_own_encoder_is_folded_for_attacks_and_trains(plugin, tmp_path):
    plugin("my_encoder")
    encoder = build_encoder(
        "my-net", {"width": 32}, torch.zeros(3), torch.ones(()), True
    ).eval()
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 2)
            module.running_mean.uniform_(-1, 1)
    signals = torch.randn(4, 3, 250, generator=seeded())
    assert encoder(signals).shape == (4, 32)
    torch.testing.assert_close(
        fold_batch_norms(encoder)(signals), encoder(signals), rtol=1e-4, atol=1e-5
    )
    run = toy_run("rocl")
    form = run.study.encoder.model_copy(
        update={"name": "my-net", "options": {"width": 8}}
    )
    run = type(run)(
        run.study.model_copy(update={"encoder": form}), run.dataset, run.arm, run.seed
    )
    state, data = prepare_training(run, toy_records(), tmp_path)
    arm_loss(state, data, torch.arange(16))[0].backward()
    assert all(
        p.grad.abs().sum() > 0
        for p in state.model["encoder"].parameters()
        if p.grad is not None
    )
    assert state.model["encoder"].backbone.first.conv.weight.grad is not None


def test_own_data_set_is_prepared_as_the_params_say(plugin, tmp_path):
    plugin("my_data")
    params = yaml.safe_load(shown("params/ward7.yaml"))
    options = DatasetOptions.model_validate(params["datasets"]["ward7"])
    folder = tmp_path / "ward7"
    signals = write_ward(folder, records=20)
    records = datasets.prepare(
        "ward7", options.model_copy(update={"data_root": str(folder)}), tmp_path
    )
    assert records.signals.shape == (len(signals), 2, 800)
    assert (records.fs, records.leads, records.classes) == (
        100.0,
        ("II", "V1"),
        ("AF", "sinus"),
    )
    assert records.card["licence"] == "in house"
    assert records.card["checksums"]["files_verified"] == 2 * len(signals)
    smooth = signals[records.table["record"].iloc[3]][::5, 1][
        :800
    ]  # slow sines: resampling keeps them
    np.testing.assert_allclose(records.signals[3, 0][50:-50], smooth[50:-50], atol=0.02)


def test_own_arrays_are_prepared_with_several_classes_a_record(plugin, tmp_path):
    plugin("my_arrays")
    write_arrays(tmp_path / "ward8")
    options = DatasetOptions(headline_epsilon_mv=0.02, data_root=str(tmp_path))
    records = datasets.prepare("ward8", options, tmp_path)
    np.testing.assert_array_equal(
        records.signals, np.load(tmp_path / "ward8/signals.npy").astype(np.float32)
    )
    assert (records.fs, records.leads, records.classes) == (
        250.0,
        ("I", "II"),
        ("AF", "LBBB"),
    )
    given = pd.read_csv(tmp_path / "ward8/labels.csv")[["AF", "LBBB"]]
    np.testing.assert_array_equal(records.labels, given)


@pytest.mark.slow
def test_a_study_on_data_of_ones_own_runs_as_the_readme_writes_it(tmp_path):
    folder, plugins = checkout(tmp_path / "whole"), []
    for name in ("my_data.py", "my_arrays.py"):
        (tmp_path / name).write_text(shown(name))
        plugins.append(str(tmp_path / name))
    write_ward(tmp_path / "ward7")
    write_arrays(tmp_path / "ward8")
    beside = (
        f"  ward8: {{data_root: {tmp_path}/ward8, headline_epsilon_mv: 0.02}}\narms:"
    )
    text = (
        shown("params/ward7.yaml").replace("~", str(tmp_path)).replace("arms:", beside)
    )
    (folder / "params/ward7.yaml").write_text(
        text.replace("[0, 1, 2]", "[0]")
    )  # in a third of the time
    assert (
        run_tiny(folder, study="ward7", ECGSTUDY_PLUGINS=os.pathsep.join(plugins)) == 0
    )
    home = folder / "outputs/ward7"
    robust = pd.read_csv(home / "tables/robust_auroc.csv")
    arms = {"supervised", "rocl", "rocl-ip-hn"}
    assert set(zip(robust["dataset"], robust["arm"], strict=True)) == {
        (name, arm) for name in ("ward7", "ward8") for arm in arms
    }
    assert robust["auroc_shared"].between(0, 1).all()
    assert "Rhythms of ward 7" in (home / "report/index.html").read_text()
    _, form = load_classifier(home / "runs/ward8/rocl/seed0/slf")
    assert (form["classes"], form["multilabel"]) == (["AF", "LBBB"], True)
    assert len([*home.glob("runs/*/*/*/slf/scores.parquet")]) == 2 * len(arms)
    assert (
        run_tiny(folder, study="ward7", ECGSTUDY_PLUGINS=os.pathsep.join(plugins)) == 0
    )
    assert (folder / "log.txt").read_text().count("nothing to do") == 1


def test_own_attack_stays_in_its_ball_and_beats_noise(plugin):
    plugin("my_attack")
    clean, noise, attacked = aurocs("mi-fgsm", 0.05, steps=10)
    assert attacked < noise - 0.05 <= clean
    victim, _ = linear()
    signals, labels = ecgs()
    mask = torch.tensor([1.0, 0.0])[:, None]
    budget = Budget(0.3, steps=7, mask=mask)
    delta = attacks.get_attack("mi-fgsm")(victim, signals, labels, budget, seeded())
    check_inside("mi-fgsm", delta, signals, budget)
    best = attacks.get_attack("pgd-margin")(victim, signals, labels, budget, seeded())
    torch.testing.assert_close(
        delta, best, rtol=1e-5, atol=1e-6
    )  # of a linear model: the corner of the ball


@pytest.mark.parametrize(
    "fault",
    {
        "too far": lambda d: d * 1.01,
        "another lead": lambda d: d + torch.tensor([0.0, 0.01])[:, None],
        "not a number": lambda d: d * torch.nan,
        "another shape": lambda d: d[:, :1],
    }.items(),
    ids=lambda fault: fault[0],
)
def test_perturbations_outside_their_set_are_refused(fault):
    signals, _ = ecgs()
    budget = Budget(0.3, mask=torch.tensor([1.0, 0.0])[:, None])
    delta = budget.ball.project(torch.full_like(signals, 1.0))
    check_inside("mine", delta, signals, budget)
    with pytest.raises(
        StudyError,
        match=r"attack 'mine': .* leave the linf ball of 0.3 mV or its leads",
    ):
        check_inside("mine", fault[1](delta), signals, budget)


def test_an_evaluation_refuses_an_attack_that_leaves_its_ball_but_for_l2_names(
    monkeypatch, tmp_path
):
    def far(victim, signals, labels, budget, generator):
        delta = torch.zeros_like(signals)
        delta[..., 0] = 2 * budget.epsilon_mv
        return delta

    monkeypatch.setitem(attacks.ATTACKS, "far", far)
    monkeypatch.setitem(attacks.ATTACKS, "far-l2", far)
    with pytest.raises(StudyError, match="attack 'far'"):
        evaluated(
            "random",
            tmp_path / "one",
            options=SHORT.model_copy(update={"attacks": ["far"]}),
        )
    done = evaluated(
        "random",
        tmp_path / "two",
        options=SHORT.model_copy(update={"attacks": ["far-l2"]}),
    )
    assert "far-l2" in set(done.scores["attack"])


def test_what_a_plugin_makes_is_out_of_date_when_it_changes(plugin, tmp_path):
    text = (
        (ROOT / "params/tiny.yaml")
        .read_text()
        .replace("attacks: [square", "attacks: [mi-fgsm, square")
    )
    (tmp_path / "mine.yaml").write_text(text)

    def keys():
        run = next(load_study(tmp_path / "mine.yaml").runs())
        paths = Paths("tiny", tmp_path)
        pretrained = cache.pretrain_step(run, paths)
        return pretrained.key, cache.evaluate_step(run, "slf", paths).key

    plugin("my_attack")
    before, path = keys(), tmp_path / "my_attack.py"
    path.write_text(path.read_text().replace("decay=1.0", "decay=0.9"))
    del sys.modules[
        next(name for name in sys.modules if name.startswith(f"{PLUGIN}my_attack"))
    ]
    load_plugins(str(path))
    after = keys()
    assert before[0] == after[0]
    assert before[1] != after[1]


@pytest.fixture
def ward(plugin, tmp_path):
    """The tiny study on a folder of one's own, and the keys of its six steps as they are now."""
    plugin("my_data")
    folder = tmp_path / "ward7"
    folder.mkdir()
    (folder / "labels.csv").write_text("record,patient,rhythm\n1,1,AF\n")
    study, paths = (
        load_study(ROOT / "params/tiny.yaml"),
        Paths("tiny", tmp_path / "outputs"),
    )

    def keys(root=folder):
        options = DatasetOptions(headline_epsilon_mv=0.02, data_root=str(root))
        mine = study.model_copy(update={"datasets": {"ward7": options}})
        found = cache.steps(mine, paths).values()
        workflow.begin(found)
        return np.array([step.key for step in found])

    return folder, keys, paths


def test_changed_data_of_ones_own_put_out_of_date_all_that_rests_on_them(ward):
    folder, keys, _ = ward
    first, file = keys(), folder / "labels.csv"
    assert len(set(first)) == 6
    (folder / ".hidden").touch()
    assert (keys() == first).all()
    same_size = file.read_text().replace("AF", "SR")
    file.write_text(same_size)
    os.utime(file, (2e9, 2e9))
    edited = keys()
    assert (edited != first).all()
    (folder / "below").mkdir()
    (folder / "below" / "1.dat").touch()
    assert (keys() != edited).all()
    shutil.rmtree(folder / "below")
    assert (keys() == edited).all()


def test_where_data_of_ones_own_are_not_nothing_is_out_of_date_unless_another_folder_is_asked_for(
    ward,
):
    folder, keys, paths = ward
    first = keys()
    folder.rename(folder.with_name("elsewhere"))
    assert (keys() == first).all()
    shutil.rmtree(paths.data("ward7"))  # no clone has it
    assert (keys() == first).all()
    assert (keys(root=folder.with_name("misspelt")) != first).all()


def test_data_that_checksums_of_ours_pin_are_never_looked_for_to_find_a_key(
    monkeypatch, tmp_path
):
    def never(*_):
        raise AssertionError

    monkeypatch.setattr(datasets, "find_folder", never)
    study = load_study(ROOT / "params/ptbxl.yaml")
    step = cache.prepare_step(study, "ptbxl", Paths("ptbxl", tmp_path))
    assert not {"data_root", "files"} & step.parameters.keys()


def test_a_committed_model_loads_and_takes_signals_in_mv(monkeypatch):
    (code,) = [
        c
        for c in re.findall(r"```python\n(.*?)```", EXAMPLES, re.DOTALL)
        if "load_classifier" in c
    ]
    monkeypatch.chdir(ROOT)
    exec(code, made := {})
    assert made["logits"].shape == (8, 5)
    assert made["form"]["fs"] == 100
    assert (made["gradient"].abs().sum(-1) > 0).all()


def test_a_figure_of_ones_own_is_drawn_from_stored_scores(tmp_path, monkeypatch):
    (code,) = [
        c
        for c in re.findall(r"```python\n(.*?)```", EXAMPLES, re.DOTALL)
        if "worst class" in c
    ]
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(Paths, "figures", property(lambda _: tmp_path))
    exec(code, {})
    plt.close("all")
    assert {file.name for file in tmp_path.iterdir()} == {
        f"worst_class.{kind}" for kind in ("csv", "png", "svg")
    }
    values = pd.read_csv(tmp_path / "worst_class.csv")
    per_class = pd.read_csv(ROOT / "outputs/mitdb/tables/per_class.csv").query(
        "attack == 'ensemble'"
    )
    per_class = per_class[
        (per_class["epsilon_mv"] == 0.02) & (per_class["seed"] != "all")
    ].astype({"seed": int})
    worst = per_class.groupby(["arm", "seed"])["auroc"].min()
    drawn = values.set_index(["arm", "seed"])["worst class"]
    pd.testing.assert_series_equal(
        drawn.sort_index(), worst.sort_index(), check_names=False, check_exact=False
    )
    assert len(drawn) == 42
