import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from ecgstudy import files
from ecgstudy.errors import StudyError
from ecgstudy.models.checkpoints import (
    load_classifier,
    load_encoder,
    load_progress,
    load_tensors,
    save_encoder,
    save_progress,
    to_float16,
    write_tensors,
)
from ecgstudy.models.encoders import build_encoder
from ecgstudy.study import ROOT

FORM = {
    "encoder": {
        "name": "resnet1d",
        "options": {"size": "small", "width": 8},
        "projection": 4,
    },
    "dual": True,
    "leads": ["I", "II"],
    "classes": ["A", "B", "C"],
    "multilabel": False,
}
X = torch.randn(4, 2, 90, generator=torch.Generator().manual_seed(0))


def encoder(width=8, dual=True):
    torch.manual_seed(0)
    options = {"size": "small", "width": width}
    made = build_encoder(
        "resnet1d", options, torch.tensor([0.1, -0.2]), torch.tensor(0.7), dual
    )
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # statistics as after training
    made.train()(X, adversarial=False)
    made(3 * X + 1, adversarial=True)
    return made


@pytest.fixture
def run_folder(tmp_path):
    """A supervised run with an evaluated protocol."""
    model = nn.ModuleDict({"encoder": encoder(), "head": nn.Linear(64, 3)})
    assert model["encoder"].eval()(X).std(0).mean() > 0.05, "features must vary"
    save_encoder(tmp_path, model, FORM)
    (tmp_path / "slf").mkdir()
    write_tensors(tmp_path / "slf" / "head.safetensors", nn.Linear(64, 3).state_dict())
    return tmp_path, model


def test_weights_are_stored_in_float16_and_the_rest_in_float32(run_folder):
    folder, model = run_folder
    with safe_open(folder / "encoder.safetensors", framework="pt") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert set(stored) == set(model.state_dict())
    for name, tensor in model.state_dict().items():
        if tensor.ndim > 1:
            assert torch.equal(stored[name], tensor.half()), name
        else:
            assert stored[name].dtype == tensor.dtype, name
            assert torch.equal(stored[name], tensor), name
    assert {t.dtype for t in stored.values()} == {
        torch.float16,
        torch.float32,
        torch.int64,
    }


def test_weights_beyond_float16_stay_as_they_are():
    """A head on standardised features divides by their spread, which may be 1e-6."""
    state = {"weight": torch.tensor([[70_000.0, 1.0]]), "bias": torch.ones(1)}
    assert to_float16(state)["weight"].equal(state["weight"])
    assert (
        to_float16(state | {"weight": torch.tensor([[65_000.0, 1.0]])})["weight"].dtype
        == torch.float16
    )


def test_the_encoder_comes_back_as_stored_ready_to_evaluate(run_folder):
    folder, model = run_folder
    loaded, head, form = load_encoder(folder)
    assert form == FORM
    for name, tensor in loaded.state_dict().items():
        original = model["encoder"].state_dict()[name]
        assert torch.equal(
            tensor, original.half().float() if original.ndim > 1 else original
        )
    assert torch.equal(head.weight, model["head"].weight.half().float())
    assert torch.equal(head.bias, model["head"].bias)
    assert not loaded.training
    assert not any(p.requires_grad for p in [*loaded.parameters(), *head.parameters()])
    torch.testing.assert_close(
        loaded(X), model["encoder"].eval()(X), atol=5e-3, rtol=5e-3
    )


def test_an_encoder_without_a_head_has_none(tmp_path):
    save_encoder(
        tmp_path,
        nn.ModuleDict({"encoder": encoder(), "projector": nn.Linear(64, 4)}),
        FORM,
    )
    assert load_encoder(tmp_path)[1] is None


def test_a_classifier_is_encoder_then_head_with_adversarial_statistics(run_folder):
    folder, _ = run_folder
    model, form = load_classifier(folder / "slf")
    loaded, _, _ = load_encoder(folder)
    head, _ = load_tensors(folder / "slf" / "head.safetensors")
    expected = loaded(X, adversarial=True) @ head["weight"].T + head["bias"]
    torch.testing.assert_close(model(X), expected)
    assert not torch.allclose(loaded(X, adversarial=True), loaded(X, adversarial=False))
    assert form == FORM
    assert not model.training


def test_a_relative_folder_means_the_same_where_jupyterlab_starts_its_kernels(
    run_folder, monkeypatch
):
    folder, _ = run_folder
    monkeypatch.setattr(files, "ROOT", folder.parent)
    monkeypatch.chdir(ROOT / "notebooks")
    weights = load_classifier(f"{folder.name}/slf")[0].state_dict()
    torch.testing.assert_close(weights, load_classifier(folder / "slf")[0].state_dict())


def missing(path):
    path.unlink()


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __reduce__(self):
        return Path.touch, (Path("unpickled"),)


def pickled(path):
    path.write_bytes(pickle.dumps(Trap()))


def torch_pickled(path):
    torch.save({"encoder.backbone.stem.conv.weight": Trap()}, path)


@pytest.mark.parametrize("damage", [missing, truncated, empty, pickled, torch_pickled])
@pytest.mark.parametrize(
    "name", ["encoder.safetensors", "encoder.json", "slf/head.safetensors"]
)
def test_damaged_files_are_one_error_that_names_them_and_nothing_is_unpickled(
    name, damage, run_folder, monkeypatch, tmp_path
):
    folder, _ = run_folder
    monkeypatch.chdir(tmp_path)
    damage(folder / name)
    with pytest.raises(StudyError) as caught:
        load_classifier(folder / "slf")
    assert str(folder / name) in str(caught.value)
    assert not Path("unpickled").exists()


@pytest.mark.parametrize(
    "content", [[], {}, {**FORM, "leads": 2}, {**FORM, "encoder": "resnet1d"}, None]
)
def test_a_form_of_other_content_is_an_error_that_names_it(content, run_folder):
    folder, _ = run_folder
    with files.write_result(folder) as new:
        new("encoder.json").write_text(json.dumps(content))
    with pytest.raises(StudyError, match=r"encoder\.json: missing or damaged"):
        load_encoder(folder)


OTHERS = {
    "wider": {
        "encoder": {"name": "resnet1d", "options": {"size": "small", "width": 16}}
    },
    "deeper": {
        "encoder": {"name": "resnet1d", "options": {"size": "base", "width": 8}}
    },
    "not dual": {"dual": False},
    "more leads": {"leads": ["I", "II", "III"]},
    "more classes": {"classes": ["A", "B", "C", "D"]},
}


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS)
def test_weights_of_another_encoder_are_an_error_that_names_the_file(
    change, run_folder
):
    folder, _ = run_folder
    with files.write_result(folder) as new:
        new("encoder.json").write_text(json.dumps({**FORM, **change}))
    with pytest.raises(
        StudyError, match=r"encoder\.safetensors: made for another encoder or head"
    ):
        load_encoder(folder)


def test_a_head_of_another_encoder_is_an_error_that_names_the_file(run_folder):
    folder, _ = run_folder
    write_tensors(folder / "slf" / "head.safetensors", nn.Linear(128, 3).state_dict())
    with pytest.raises(
        StudyError, match=r"head\.safetensors: made for another encoder or head"
    ):
        load_classifier(folder / "slf")


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["encoder.safetensors", "encoder.json"])
def test_one_flipped_bit_is_found_by_its_checksum(name, run_folder):
    folder, _ = run_folder
    flip_a_bit(folder / name)
    with pytest.raises(StudyError, match=rf"{name}: damaged, its SHA-256"):
        load_encoder(folder)


def test_tensors_and_note_come_back(tmp_path):
    tensors = {
        "a": torch.randn(3, 4).T,  # not contiguous
        "b": torch.tensor(7),
        "c": torch.tensor([], dtype=torch.uint8),
        "d": torch.randn(2, 2, requires_grad=True),
    }
    note = {"text": "ε", "numbers": [1, 0.1, None]}
    write_tensors(tmp_path / "x.safetensors", tensors, note)
    loaded, back = load_tensors(tmp_path / "x.safetensors")
    assert back == note
    assert set(loaded) == set(tensors)
    assert all(
        torch.equal(loaded[k], tensors[k]) and loaded[k].dtype == tensors[k].dtype
        for k in tensors
    )


def training_state(seed):
    """Channels-last convolution and its optimiser, whose moments follow the weights'
    memory layout."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 4, (1, 3)), nn.BatchNorm2d(4)).to(
        memory_format=torch.channels_last
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    return model, optimizer, {"views": torch.Generator().manual_seed(seed)}


def step(model, optimizer, streams):
    x = torch.randn(8, 3, 1, 10, generator=streams["views"])
    optimizer.zero_grad()
    model(x.contiguous(memory_format=torch.channels_last)).square().mean().backward()
    optimizer.step()


def test_training_continues_bit_for_bit_from_a_checkpoint(tmp_path):
    path, one, other = (
        tmp_path / "checkpoint.safetensors",
        training_state(0),
        training_state(1),
    )
    for _ in range(3):
        step(*one)
    save_progress(path, *one, {"history": [1, 2]})
    assert load_progress(path, *other) == {"history": [1, 2]}
    for _ in range(3):
        step(*one)
        step(*other)
    for name, tensor in one[0].state_dict().items():
        assert torch.equal(tensor, other[0].state_dict()[name]), name
    assert torch.equal(one[2]["views"].get_state(), other[2]["views"].get_state())


def test_a_checkpoint_of_another_model_is_an_error_that_names_it(tmp_path):
    path, (_, optimizer, streams) = (
        tmp_path / "checkpoint.safetensors",
        training_state(0),
    )
    save_progress(path, nn.Linear(2, 3), optimizer, streams, {})
    with pytest.raises(StudyError, match=r"checkpoint\.safetensors: made for another"):
        load_progress(path, *training_state(0))


class OnGpu:
    """A random generator as a GPU has it."""

    device = torch.device("cuda")

    def get_state(self):
        return torch.zeros(16, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("begun", "here", "says"),
    [
        (OnGpu(), torch.Generator(), "begun on a GPU"),
        (torch.Generator(), OnGpu(), "begun on the CPU"),
    ],
)
def test_a_checkpoint_of_the_other_kind_of_device_is_an_error_and_changes_nothing(
    begun, here, says, tmp_path
):
    path, (model, optimizer, _) = tmp_path / "checkpoint.safetensors", training_state(0)
    save_progress(path, model, optimizer, {"views": begun}, {})
    model, optimizer, _ = training_state(1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(
        StudyError,
        match=rf"checkpoint\.safetensors: {says}.* or delete it to start again",
    ):
        load_progress(path, model, optimizer, {"views": here})
    assert all(
        torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items()
    )
