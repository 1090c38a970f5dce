"""Weights and training state on disk, in safetensors: loading never runs code."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Generator, Tensor, nn

from ecgstudy.devices import pick_device
from ecgstudy.errors import StudyError
from ecgstudy.files import check_sum, in_checkout, json_text, whole_file, write_result
from ecgstudy.models.encoders import Encoder, build_encoder, load_state
from ecgstudy.models.heads import Classifier
from ecgstudy.params import method


def write_tensors(
    path: Path, tensors: dict[str, Tensor], note: dict | None = None
) -> None:
    """Write a safetensors file.

    Parameters
    ----------
    path
        Of the file, such as `ecgstudy.files.write_result` gives it.
    tensors
        By name.
    note
        What JSON can hold, kept beside them.
    """
    plain = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    # Not safetensors' save_file: killed, it leaves a file of a name of its own.
    path.write_bytes(save(plain, metadata={"note": json.dumps(note or {})}))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict]:
    """Tensors and note of a safetensors file.

    Raises
    ------
    StudyError
        When the file is missing or damaged.
    """
    try:
        with safe_open(check_sum(path), framework="pt") as file:
            names = list(file.keys())
            tensors = {name: file.get_tensor(name) for name in names}
            return tensors, json.loads((file.metadata() or {}).get("note", "{}"))
    except FileNotFoundError:
        raise StudyError(f"{path}: no such file; `ecgstudy study` makes it") from None
    except (OSError, SafetensorError, ValueError) as error:
        raise StudyError(
            f"{path}: not a readable safetensors file ({error}); delete it to make it "
            "again"
        ) from error


def to_float16(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights (2 and more dimensions) as float16; the rest stays as it is.

    So do weights beyond float16's 65,504: a head on a feature that hardly varies.
    """
    largest = torch.finfo(torch.float16).max
    rounded = dict(state)
    for name, tensor in state.items():
        weights = tensor.is_floating_point() and tensor.ndim > 1
        if weights and tensor.abs().max() <= largest:
            rounded[name] = tensor.half()
    return rounded


# ---- stored encoders and classifiers -------------------------------------------------


def save_encoder(
    folder: Path, model: nn.ModuleDict, form: dict, history: str | None = None
) -> None:
    """Store a trained model; the study evaluates it as stored, rounded to float16.

    Parameters
    ----------
    folder
        The run's.
    model
        The encoder and what it was trained with (projector, head, …).
    form
        What says how to build it: ``encoder.json``.
    history
        Content of ``history.jsonl``; None: there is none.
    """
    save_result(folder, to_float16(model.state_dict()), form, history)


def save_result(
    folder: Path, tensors: dict[str, Tensor], form: dict, history: str | None
) -> None:
    """Write ``encoder.safetensors``, ``encoder.json`` and ``history.jsonl``, or none.

    Parameters
    ----------
    folder, form, history
        As of `save_encoder`.
    tensors
        As they are stored.
    """
    with write_result(folder) as new:
        new("encoder.json").write_text(json_text(form), encoding="utf-8")
        if history is not None:
            new("history.jsonl").write_text(history, encoding="utf-8")
        write_tensors(new("encoder.safetensors"), tensors)


def load_encoder(
    folder: str | Path, device: str = "cpu"
) -> tuple[Encoder, nn.Linear | None, dict]:
    """The stored encoder of a run, its head if it was trained with one, and its form.

    Parameters
    ----------
    folder
        Such as ``outputs/mitdb/runs/mitdb/rocl/seed0``; a relative one that is not
        there is looked for in the checkout.
    device
        ``"cpu"``, ``"cuda"`` or ``"auto"``.

    Raises
    ------
    StudyError
        When a file is missing, damaged or made for another encoder.
    """
    folder, place = in_checkout(folder), pick_device(device)
    file, path = folder / "encoder.json", folder / "encoder.safetensors"
    try:
        form = json.loads(check_sum(file).read_text(encoding="utf-8"))
        name, options = form["encoder"]["name"], form["encoder"]["options"]
        leads, classes, dual = len(form["leads"]), len(form["classes"]), form["dual"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StudyError(
            f"{file}: missing or damaged ({error}); pretrain the run first"
        ) from error
    mean_mv, std_mv = torch.zeros(leads), torch.ones(())  # the stored ones follow
    if name == "pretrained":  # trained weights follow; the released ones may be gone
        options = options | {"weights": None}
    encoder = build_encoder(name, options, mean_mv, std_mv, dual)
    state, _ = load_tensors(path)
    load_state(encoder, _part(state, "encoder."), path)
    head, stored_head = None, _part(state, "head.")
    if stored_head:
        head = nn.Linear(encoder.features, classes)
        load_state(head, stored_head, path)
        head = head.to(place).requires_grad_(False)
    return encoder.to(place).eval().requires_grad_(False), head, form


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Tensors whose names begin with `prefix`, without it."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def load_classifier(folder: str | Path, device: str = "cpu") -> tuple[Classifier, dict]:
    """Encoder and head of an evaluated run, ready to attack: signals in mV → logits.

    Parameters
    ----------
    folder
        Of a protocol, such as ``outputs/mitdb/runs/mitdb/rocl/seed0/slf``. The encoder
        is that of the run, or after ``aff``, which trains all weights, the one inside.
    device
        As of `load_encoder`.

    Returns
    -------
    model : Classifier
        (records, leads, samples) in mV → logits (records, classes), frozen.
    form : dict
        Leads, sampling rate in Hz, classes, whether multi-label, and more.
    """
    folder = in_checkout(folder)
    path = folder / "head.safetensors"
    state, note = load_tensors(path)
    fine_tuned = method(note.get("protocol", "slf")) == "aff"
    encoder, _, form = load_encoder(folder if fine_tuned else folder.parent, device)
    # After transfer, the classes are those of the data that were tested on.
    form |= {key: note[key] for key in ("classes", "multilabel") if key in note}
    head = nn.Linear(encoder.features, len(form["classes"]))
    load_state(head, state, path)
    head.to(encoder.mean_mv.device)
    return Classifier(encoder, head).eval().requires_grad_(False), form


# ---- interrupted training ------------------------------------------------------------


def save_progress(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    streams: dict[str, Generator],
    note: dict,
) -> None:
    """Write everything that an exact continuation needs.

    Parameters
    ----------
    path
        Of the checkpoint.
    model, optimizer, streams
        Weights, moments, and random streams by name.
    note
        What else is wanted, as JSON.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        for name, value in moments.items():
            tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value)
    for name, stream in streams.items():
        tensors[f"stream.{name}"] = stream.get_state()
    with whole_file(path) as new:
        write_tensors(new, tensors, note)


def load_progress(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    streams: dict[str, Generator],
) -> dict:
    """Restore what `save_progress` wrote, and return its note.

    Parameters
    ----------
    path, model, optimizer, streams
        As of `save_progress`.

    Raises
    ------
    StudyError
        When the file is damaged, of another model, or begun on another kind of device,
        whose random generators are others. Nothing is restored then.
    """
    tensors, note = load_tensors(path)
    stored = _part(tensors, "stream.")
    for name, stream in streams.items():
        if stored[name].shape != stream.get_state().shape:
            begun = "the CPU" if stream.device.type == "cuda" else "a GPU"
            raise StudyError(
                f"{path}: begun on {begun}, whose random numbers cannot be continued "
                f"here; continue on {begun}, or delete it to start again"
            )
    load_state(model, _part(tensors, "model."), path)
    state = optimizer.state_dict()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, parameter in enumerate(parameters):
        moments = _part(tensors, f"optimizer.{index}.")
        for name, value in moments.items():
            if value.shape == parameter.shape:
                # The fused optimiser walks memory: moments need their weight's layout.
                moments[name] = torch.empty_like(parameter).copy_(value)
        if moments:
            state["state"][index] = moments
    optimizer.load_state_dict(state)
    for name, stream in streams.items():
        stream.set_state(stored[name])
    return note
