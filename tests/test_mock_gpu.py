"""What runs on a GPU, on an emulated one: the CPU's numbers, and no waits in steps."""

import copy
import dataclasses
import os

import numpy as np
import pandas as pd
import pytest
import torch
from networks import NAMES, noise
from test_foundation import needs_transformers
from test_robustness import OPTIONS, records_with_sensitivity
from toy import toy_records, toy_run

from benchmarks import growth, launches, loss, steps
from benchmarks.mock_gpu import Generator, mock_gpu
from benchmarks.shapes import case
from ecgstudy.attacks.api import Budget, Victim
from ecgstudy.attacks.corruptions import CORRUPTIONS
from ecgstudy.attacks.named import ATTACKS, get_attack
from ecgstudy.devices import pick_device
from ecgstudy.evaluation import diagnostics, embedding, explore
from ecgstudy.evaluation.runner import evaluate, validation_curve
from ecgstudy.files import ROOT
from ecgstudy.models.checkpoints import load_encoder, load_tensors
from ecgstudy.models.encoders import Encoder, build_encoder
from ecgstudy.models.released.adapter import Adapted
from ecgstudy.models.released.hubert import hubert_ecg
from ecgstudy.models.released.net1d import clef
from ecgstudy.pretraining import loop as training
from ecgstudy.pretraining.loop import pretrain, train_step
from ecgstudy.pretraining.setup import prepare_training
from ecgstudy.pretraining.step import arm_loss
from ecgstudy.pretraining.suffixes import arm_names, get_arm
from ecgstudy.running import launch

HUBERT = pytest.param(hubert_ecg, marks=needs_transformers)
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
MORE = [("rocl-hn", True, "slf"), ("simclr", False, "alf"), ("random", False, "slf")]
TRAINED = [name for name in arm_names() if get_arm(name).losses]


def on(device, run, **changes):
    return dataclasses.replace(
        run, study=run.study.model_copy(update={"device": device, **changes})
    )


# ---- the emulation -------------------------------------------------------------------


def test_tensors_know_their_place_and_stay_apart():
    with mock_gpu():
        there, here = torch.ones(3, device="cuda"), torch.ones(3)
        assert (there.device.type, (2 * there).device.type, here.device.type) == (
            "cuda",
            "cuda",
            "cpu",
        )
        assert there.is_cuda
        assert not here.is_cuda
        with pytest.raises(RuntimeError, match="same device"):
            there + here
        with pytest.raises(RuntimeError, match="same device"):
            here[torch.arange(2, device="cuda")]
        assert (
            there + torch.tensor(1.0)
        ).device.type == "cuda"  # numbers may come from the CPU
        assert there[torch.arange(2)].device.type == "cuda"  # and so may indices
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        assert there.cpu().numpy().tolist() == [1, 1, 1]
        assert here.to(there).device.type == "cuda"
    assert there.device == CPU


def test_modules_gradients_and_copies_are_where_their_tensors_are():
    with mock_gpu():
        layer = torch.nn.BatchNorm1d(3).to(CUDA)
        layer(torch.rand(4, 3, device=CUDA)).sum().backward()
        for tensor in (
            layer.weight,
            layer.weight.grad,
            copy.deepcopy(layer).running_mean,
        ):
            assert tensor.device.type == "cuda"
        with pytest.raises(RuntimeError, match="same device"):
            layer(torch.rand(4, 3))


def test_a_generator_of_the_other_place_is_refused():
    with mock_gpu():
        torch.rand(2, generator=Generator(CUDA), device=CUDA)
        with pytest.raises(RuntimeError, match="generator on cpu"):
            torch.rand(2, generator=Generator(), device=CUDA)


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).all()),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: x.cpu(),
        lambda x: x.tolist(),
        lambda x: torch.equal(x, x),
    ],
)
def test_what_waits_is_counted(wait):
    with mock_gpu() as gpu:
        x = torch.ones(3, device=CUDA)
        assert x.square().clamp(max=2).view(3, 1).shape == (3, 1)
        assert not gpu.waits
        assert gpu.launches == {"pow": 1, "clamp": 1}
        wait(x)
        assert gpu.waits.total()


def test_no_optimiser_asks_for_a_stream_where_torch_is_built_for_cuda(monkeypatch):
    """Such a torch names CUDA as its accelerator also where there is no GPU."""

    def found(check_available=False):
        return CUDA if torch.cuda.is_available() or not check_available else None

    monkeypatch.setattr(torch.accelerator, "current_accelerator", found)
    monkeypatch.setattr(
        torch.accelerator,
        "current_stream",
        lambda *_: pytest.fail("asked for a stream"),
    )
    with mock_gpu():
        weight = torch.ones(3, device=CUDA, requires_grad=True)
        optimizer = torch.optim.AdamW([weight], lr=0.1)
        weight.sum().backward()
        optimizer.step()
        assert (weight < 1).all()


# ---- pretraining ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """Folders with the encoder that some arms need, by single- and multi-label."""
    roots = {
        multilabel: tmp_path_factory.mktemp("runs") for multilabel in (False, True)
    }
    for multilabel, root in roots.items():
        pretrain(
            toy_run("simclr"),
            toy_records(multilabel=multilabel),
            root / "simclr" / "seed0",
        )
    return roots


@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize("arm", TRAINED)
def test_every_arm_has_the_same_loss_and_gradient_there(arm, multilabel, teachers):
    records = toy_records(multilabel=multilabel)

    def found_on(device):
        folder = teachers[multilabel] / arm / "seed0"
        state, data = prepare_training(on(device, toy_run(arm)), records, folder)
        value, log = arm_loss(state, data, torch.arange(16, device=data.device))
        value.backward()
        gradients = [p.grad for p in state.model.parameters() if p.grad is not None]
        everything = [value.detach(), *log.values(), *gradients]
        assert {each.device.type for each in everything} == {device}
        return [each.cpu() for each in everything]

    expected = found_on("cpu")
    with mock_gpu():
        found = found_on("cuda")
    assert len(found) == len(expected) > 1
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("dual", [False, True])
@pytest.mark.parametrize("build", [*NAMES, clef, HUBERT])
def test_every_encoder_has_the_same_features_and_gradients_there(build, dual):
    """Released networks too, behind their adaptation of leads, rate and band."""
    torch.manual_seed(0)
    if isinstance(build, str):
        encoder = build_encoder(build, {}, torch.zeros(2), torch.ones(()), dual)
    else:
        encoder = Encoder(
            Adapted(build(), ("I", "II"), 100.0, dual), torch.zeros(2), torch.ones(())
        )
    signals = noise(2, 2, 1000)

    def found_on(device):
        there, x = (
            copy.deepcopy(encoder).to(device),
            signals.clone().to(device).requires_grad_(),
        )
        features = there(x, adversarial=True)
        features.square().sum().backward()
        gradients = [p.grad for p in there.parameters() if p.grad is not None]
        assert {each.device.type for each in (features, x.grad, *gradients)} == {device}
        return [each.detach().cpu() for each in (features, x.grad, *gradients)]

    expected = found_on("cpu")
    with mock_gpu():
        assert all(map(torch.equal, found_on("cuda"), expected))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_run_interrupted_there_ends_with_the_weights_of_the_cpu(tmp_path, precision):
    records, run = toy_records(), toy_run("rocl-ip-hn", epochs=2, precision=precision)
    pretrain(on("cpu", run), records, tmp_path / "cpu")
    with mock_gpu() as gpu, pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            training, "_save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            pretrain(on("cuda", run), records, tmp_path / "gpu")
        patch.undo()
        assert (tmp_path / "gpu" / "checkpoint.safetensors").exists()
        pretrain(on("cuda", run), records, tmp_path / "gpu")
        assert gpu.launches
    ours, theirs = (
        load_tensors(tmp_path / name / "encoder.safetensors")[0]
        for name in ("cpu", "gpu")
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize(
    ("arm", "losses"), [("supervised", 0), ("simclr", 1), ("rocl-ip-hn", 3), ("acl", 3)]
)
def test_a_training_step_waits_only_to_list_the_pairs_that_pull(arm, losses):
    """Once for each contrastive loss, and once for each inner attack on one."""
    with mock_gpu() as gpu:
        state, data = prepare_training(on("cuda", toy_run(arm)), toy_records(), ROOT)
        index = torch.arange(16, device=CUDA)
        train_step(state, data, index, 1e-3)
        gpu.waits.clear()
        train_step(state, data, index, 1e-3)
        assert gpu.waits == ({"nonzero": losses} if losses else {})


# ---- evaluation ----------------------------------------------------------------------


@pytest.mark.parametrize("multilabel", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        "pgd-margin",
        "apgd-margin",
        "apgd-ce",
        "apgd-l2",
        "square",
        "sap",
        "band-low",
        "universal",
    ],
)
def test_no_step_of_an_attack_waits(name, multilabel):
    with mock_gpu() as gpu:
        model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2 * 96, 3)).to(
            CUDA
        )
        victim = Victim(model.requires_grad_(False), multilabel, fs=100.0)
        records = toy_records(multilabel=multilabel)
        signals = torch.tensor(records.signals[:12], device=CUDA)
        labels = torch.tensor(records.multi_hot()[:12], device=CUDA)

        def waits(steps):
            gpu.waits.clear()
            budget = Budget(0.05, steps, queries=steps)
            get_attack(name)(
                victim, signals, labels, budget, Generator(CUDA).manual_seed(0)
            )
            return gpu.waits.total()

        assert waits(4) == waits(12)


def everything(arm, multilabel, protocol, device, root):
    """All that an evaluation and the notebooks' looks at a run find on `device`."""
    names = [
        name
        for name in ATTACKS
        if name not in OPTIONS.ensemble and not (multilabel and "dlr" in name)
    ]
    evaluation = OPTIONS.model_copy(
        update={
            "attacks": [
                *(name for name in names if name != "apgd-dlr-targeted"),
                "apgd-margin[I]",
            ],
            "corruptions": [*CORRUPTIONS],
            "severities": [1, 5],
            "epsilons_mv": [0.05],
            "steps": 2,
            "label_steps": 2,
            "queries": 3,
            "check_steps": 2,
        }
    )
    run, records = toy_run(arm, epochs=2), records_with_sensitivity(multilabel)
    run, folder = (
        on(device, run, evaluation=evaluation, protocols=[protocol]),
        root / device / arm / "seed0",
    )
    pretrain(run, records, folder)
    found = {"scores": evaluate(run, records, folder / protocol, protocol)}
    if arm != "random":
        ecg = explore.most_fragile(run, records, folder / protocol, found["scores"])
        found["fragile"] = ecg.scores
    if get_arm(arm).contrasts:
        found["pairs"] = diagnostics.inspect_batch(run, records, folder, 32)
    if protocol == "slf":
        found["curve"] = pd.Series(validation_curve(run, records, folder)).to_frame()
    return found


@pytest.mark.parametrize(
    ("arm", "multilabel", "protocol"),
    [
        ("supervised", False, "slf"),
        ("simclr", True, "aff"),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in MORE),
    ],
)
def test_an_evaluation_finds_the_same_there(arm, multilabel, protocol, tmp_path):
    expected = everything(arm, multilabel, protocol, "cpu", tmp_path)
    with mock_gpu() as gpu:
        found = everything(arm, multilabel, protocol, "cuda", tmp_path)
    assert gpu.launches.total() > 1000
    assert found.keys() == expected.keys()
    for name, table in expected.items():
        pd.testing.assert_frame_equal(found[name], table)


def test_the_notebooks_look_at_a_run_there(tmp_path):
    """Attacks on one ECG, and features of many."""
    few = {
        "attacks": ["square"],
        "corruptions": [],
        "epsilons_mv": [0.05],
        "steps": 2,
        "label_steps": 1,
        "queries": 3,
    }
    evaluation = OPTIONS.model_copy(update={**few, "check_steps": 1})
    run, records = (
        on("cpu", toy_run("supervised"), evaluation=evaluation),
        records_with_sensitivity(),
    )
    pretrain(run, records, tmp_path)
    scores = evaluate(run, records, tmp_path / "slf", "slf")

    def fragile(device):
        ecg = explore.most_fragile(on(device, run), records, tmp_path / "slf", scores)
        return [ecg.signal, *ecg.deltas.values(), ecg.scores.to_numpy()]

    def plane(device):
        found = embedding.embedding_plane(records, tmp_path, device=device)
        return [found[["x", "y"]].to_numpy()]

    for look in (fragile, plane):
        expected = look("cpu")
        with mock_gpu() as gpu:
            found = look("cuda")
        assert gpu.launches["convolution"]
        assert len(found) == len(expected)
        assert all(map(np.array_equal, found, expected))


def test_a_model_of_features_is_attacked_through_a_network_there(tmp_path):
    def scores(device):
        options = OPTIONS.model_copy(
            update={
                "epsilons_mv": [0.05],
                "attacks": ["transfer"],
                "transfer_from": "supervised",
                "queries": 3,
            }
        )
        for arm in ("supervised", "features-lr"):
            run, records = (
                on(device, toy_run(arm), evaluation=options),
                records_with_sensitivity(),
            )
            folder = tmp_path / device / arm / "seed0"
            launch.pretrain(run, records, folder)
        return evaluate(run, records, folder / "slf", "slf")

    expected = scores("cpu")
    with mock_gpu():
        pd.testing.assert_frame_equal(scores("cuda"), expected)


def process_wide():
    """What `pick_device` sets for the whole process."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    return (
        cudnn.allow_tf32,
        matmul.allow_tf32,
        matmul.fp32_precision,
        cudnn.deterministic,
        workspace,
    )


def test_float32_is_not_rounded_to_tf32_there_and_sums_are_repeatable(
    tmp_path, monkeypatch
):
    """cuDNN multiplies with 10 bits unless told otherwise: an attack would vanish."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    pretrain(toy_run("random"), toy_records(), tmp_path)
    before = process_wide()
    for ask in (lambda: pick_device("cuda"), lambda: load_encoder(tmp_path, "cuda")):
        with mock_gpu():
            assert torch.backends.cudnn.allow_tf32
            assert not torch.backends.cudnn.deterministic
            ask()
            assert process_wide() == (False, False, "ieee", True, ":4096:8")
        assert process_wide() == before


def test_a_workspace_of_ones_own_is_kept(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with mock_gpu():
        pick_device("cuda")
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"


def test_the_cpu_sets_nothing():
    before = process_wide()
    pick_device("cpu")
    assert process_wide() == before


# ---- benchmarks ----------------------------------------------------------------------


def small(name, **options):
    """A study's shapes, but for its batches and numbers of steps."""
    shapes = case(name, **options)
    evaluation = shapes.study.evaluation.model_copy(
        update={"steps": 2, "batch_size": 8}
    )
    training = shapes.study.training.model_copy(
        update={"attack_steps": 1, "batch_size": 8}
    )
    study = shapes.study.model_copy(
        update={"evaluation": evaluation, "training": training}
    )
    return dataclasses.replace(shapes, study=study)


def test_operations_are_counted_beside_the_bare_passes(monkeypatch):
    monkeypatch.setattr(launches, "STUDIES", ("mitdb",))
    monkeypatch.setattr(launches, "ARMS", ("rocl",))
    monkeypatch.setattr(launches, "ATTACKS", ("pgd-margin",))
    monkeypatch.setattr(launches, "case", small)
    rows = pd.DataFrame(launches.measure(CPU, 1)).set_index(["benchmark", "variant"])
    asked, waits = rows["value"].unstack(), rows["waits"].unstack()
    assert (asked["bare"] < asked["ours"]).all()
    assert (waits["bare"] == 0).all()
    assert waits["ours"].to_dict() == {
        "operations of pretraining steps": 3,
        "operations of attack steps": 0,
    }
    assert (
        rows["ratio"].unstack()["ours"].tolist()
        == (asked["bare"] / asked["ours"]).tolist()
    )


def test_peers_are_tried_with_the_batches_of_their_device_that_fit(monkeypatch):
    pytest.importorskip("torchattacks")
    from benchmarks import peers

    tried = []

    def attacks(victim, device):
        def made(size):
            def attack(signals, y):
                tried.append((device.type, size, len(signals)))
                if size > 16:
                    raise torch.OutOfMemoryError("CUDA out of memory")
                return signals

            return attack

        return {"PGD": {"ours": made}}

    assert (peers.RECORDS["cpu"], peers.BATCHES["cpu"]) == (256, (64, 128, 256))
    assert peers.RECORDS["cuda"] == max(peers.BATCHES["cuda"]) == 8192
    small_sizes = {
        "RECORDS": {"cpu": 4, "cuda": 32},
        "BATCHES": {"cpu": (2, 4), "cuda": (8, 16, 32)},
    }
    changed = {"STUDIES": ("mitdb",), "case": small, "make_attacks": attacks}
    changed |= small_sizes
    for name, value in changed.items():
        monkeypatch.setattr(peers, name, value)
    peers.measure(CPU, 1)
    assert set(tried) == {("cpu", 2, 4), ("cpu", 4, 4)}
    tried.clear()
    with mock_gpu():
        (row,) = peers.measure(CUDA, 1)
    assert set(tried) == {("cuda", size, 32) for size in (8, 16, 32)}
    assert tried.count(("cuda", 32, 32)) == 1
    assert row["batch"] in (8, 16)


@pytest.mark.slow
def test_the_benchmarks_run_there(monkeypatch):
    sizes = {"RECORDS": (4, 8), "BATCHES": (8, 32), "STEPS": (1, 2), "LEADS": (1, 2)}
    changed = {
        steps: {"ARMS": ("supervised", "rocl-ip-hn"), "case": small},
        loss: {"ROWS": (64, 1100)},
        growth: {**sizes, "case": small},
    }
    for module, values in changed.items():
        for name, value in values.items():
            monkeypatch.setattr(module, name, value)
    with mock_gpu() as gpu:
        rows = [
            *steps.measure(CUDA, 1),
            *loss.measure(CUDA, 1),
            *growth.measure(CUDA, 1),
        ]
        assert gpu.launches
    assert all(each["value"] > 0 for each in rows)
