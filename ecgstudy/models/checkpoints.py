"""Weights and training state on disk: safetensors only, so that loading never runs code."""

import json
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Generator, Tensor, nn

from ecgstudy.devices import pick_device
from ecgstudy.errors import StudyError
from ecgstudy.files import in_checkout, json_text, whole_file, whole_files
from ecgstudy.models.encoders import Encoder, build_encoder
from ecgstudy.models.heads import Classifier
from ecgstudy.models.released.adapter import without_weights
from ecgstudy.params import method


def save_tensors(
    path: Path, tensors: dict[str, Tensor], note: dict | None = None
) -> None:
    """Write `tensors` and a JSON-serialisable `note` to a safetensors file, whole (see `whole_file`)."""
    with whole_file(path) as partial:
        write_tensors(partial, tensors, note)


def write_tensors(
    path: Path, tensors: dict[str, Tensor], note: dict | None = None
) -> None:
    """As `save_tensors`, for a path that `ecgstudy.files.whole_files` gave."""
    plain = {
        name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()
    }
    # Not safetensors' save_file: killed, it leaves a file of a name of its own.
    path.write_bytes(save(plain, metadata={"note": json.dumps(note or {})}))


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict]:
    """Read what `save_tensors` wrote.

    Raises
    ------
    StudyError
        When the file is missing or damaged, naming it.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            return tensors, json.loads((file.metadata() or {}).get("note", "{}"))
    except FileNotFoundError:
        raise StudyError(
            f"{path}: no such file; run `make study STUDY=…`, which makes it"
        ) from None
    except (OSError, SafetensorError, ValueError) as error:
        raise StudyError(
            f"{path}: not a readable safetensors file ({error}); delete it to make it anew"
        ) from error


def to_float16(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights (2 and more dimensions) as float16; biases, batch-norm statistics and scales stay float32.

    So do tensors with values beyond float16's 65,504, as a head on a feature that is almost always the same.
    """
    most = torch.finfo(torch.float16).max
    weights = {
        name: t for name, t in state.items() if t.is_floating_point() and t.ndim > 1
    }
    return state | {
        name: t.half() for name, t in weights.items() if (t.abs() <= most).all()
    }


def load_state(module: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Load `state` into `module`, in the module's own precision.

    Raises
    ------
    StudyError
        When names or shapes do not match (a checkpoint of another encoder).
    """
    own = module.state_dict()
    wrong = sorted(set(own) ^ set(state)) or [
        name for name in own if own[name].shape != state[name].shape
    ]
    if wrong:
        raise StudyError(
            f"{path}: made for another encoder or head ({wrong[0]!r} does not match); "
            "use the options in the encoder.json beside it"
        )
    module.load_state_dict(state)


def save_encoder(
    folder: Path, model: nn.ModuleDict, form: dict, history: str | None = None
) -> None:
    """Write ``encoder.safetensors`` (float16 weights) and ``encoder.json``, which says how to build it.

    The study evaluates the encoder *as stored*. `model` holds it and what it was trained with: a projector,
    or a supervised arm's head. `history`, if given, becomes ``history.jsonl``.
    """
    save_result(folder, to_float16(model.state_dict()), form, history)


def save_result(
    folder: Path, tensors: dict[str, Tensor], form: dict, history: str | None
) -> None:
    """Write a run's ``encoder.safetensors``, ``history.jsonl`` and ``encoder.json``: all or none.

    The last one says that the others are there, goes first and comes last.
    """
    with whole_files() as new:
        new(folder / "encoder.json").write_text(json_text(form), encoding="utf-8")
        if history is not None:
            new(folder / "history.jsonl").write_text(history, encoding="utf-8")
        write_tensors(new(folder / "encoder.safetensors"), tensors)
        (folder / "encoder.json").unlink(missing_ok=True)


def load_encoder(
    folder: str | Path, device: str = "cpu"
) -> tuple[Encoder, nn.Linear | None, dict]:
    """The encoder that a run stored in `folder`, its head if it was trained with one, and its form.

    A relative `folder` that is not there is looked for in the checkout.

    Examples
    --------
    >>> encoder, head, form = load_encoder("outputs/mitdb/runs/mitdb/rocl/seed0")  # doctest: +SKIP
    >>> features = encoder(signals_mv)  # (records, leads, samples) in mV  # doctest: +SKIP

    Raises
    ------
    StudyError
        When a file is missing, damaged or made for another encoder.
    """
    folder = in_checkout(folder)
    file, path = folder / "encoder.json", folder / "encoder.safetensors"
    try:
        form = json.loads(file.read_text(encoding="utf-8"))
        scale, classes = (
            (torch.zeros(len(form["leads"])), torch.ones(())),
            len(form["classes"]),
        )
        name, options, dual = (
            form["encoder"]["name"],
            form["encoder"]["options"],
            form["dual"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StudyError(
            f"{file}: missing or damaged ({error}); pretrain the run first"
        ) from error
    encoder = build_encoder(name, without_weights(options), *scale, dual=dual)
    state, _ = load_tensors(path)
    own = {
        name.removeprefix("encoder."): t
        for name, t in state.items()
        if name.startswith("encoder.")
    }
    load_state(encoder, own, path)
    head = None
    if "head.weight" in state:
        head = nn.Linear(encoder.features, classes)
        load_state(
            head, {name: state[f"head.{name}"] for name in ("weight", "bias")}, path
        )
    place = pick_device(device)
    encoder = encoder.to(place).eval().requires_grad_(False)
    return encoder, head if head is None else head.to(place).requires_grad_(False), form


def load_classifier(folder: str | Path, device: str = "cpu") -> tuple[Classifier, dict]:
    """Encoder and head of one evaluated run, ready to attack: signals in mV → logits.

    Parameters
    ----------
    folder
        A protocol folder, such as ``outputs/mitdb/runs/mitdb/rocl/seed0/slf``. The encoder is that of the
        folder above, or after ``aff``, which trains all weights, the one inside. A relative one that is not
        there is looked for in the checkout.

    Returns
    -------
    model : Classifier
        (records, leads, samples) in mV → logits (records, classes), in evaluation mode.
    form : dict
        Leads, sampling rate in Hz, classes, whether multi-label (those tested on), and the encoder's options.
    """
    folder = in_checkout(folder)
    state, note = load_tensors(folder / "head.safetensors")
    home = folder if method(note.get("protocol", "slf")) == "aff" else folder.parent
    encoder, _, form = load_encoder(home, device)
    form |= {key: note[key] for key in ("classes", "multilabel") if key in note}
    head = nn.Linear(encoder.features, len(form["classes"]))
    load_state(head, state, folder / "head.safetensors")
    model = Classifier(encoder, head.to(device)).eval().requires_grad_(False)
    model.register_forward_pre_hook(partial(_check_form, tuple(form["leads"])))
    return model, form


def _check_form(
    leads: tuple[str, ...], _: nn.Module, given: tuple[Tensor, ...]
) -> None:
    """Fewer leads would be spread over all of them, and pass unseen."""
    if given[0].ndim != 3 or given[0].shape[1] != len(leads):
        raise StudyError(
            f"signals of shape {tuple(given[0].shape)}; this model takes (records, {len(leads)}, samples):"
            f" leads {', '.join(leads)}"
        )


def save_progress(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    streams: dict[str, Generator],
    note: dict,
) -> None:
    """Write everything that an exact continuation needs: weights, optimiser, random streams, `note`."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {
            f"optimizer.{index}.{name}": torch.as_tensor(value)
            for name, value in values.items()
        }
    tensors |= {
        f"stream.{name}": stream.get_state() for name, stream in streams.items()
    }
    save_tensors(path, tensors, note)


def load_progress(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    streams: dict[str, Generator],
) -> dict:
    """Restore what `save_progress` wrote and return its note.

    Raises
    ------
    StudyError
        When the file is damaged, belongs to another model, or was begun on a GPU and is to go on on a CPU,
        or the reverse: their random generators have states of different sizes. Nothing is restored then.
    """
    tensors, note = load_tensors(path)
    part = {prefix: {} for prefix in ("model", "optimizer", "stream")}
    for name, tensor in tensors.items():
        prefix, rest = name.split(".", 1)
        part[prefix][rest] = tensor
    _check_streams(path, part["stream"], streams)
    load_state(model, part["model"], path)
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in part["optimizer"].items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for (
        index,
        values,
    ) in (
        state.items()
    ):  # the fused optimiser walks memory: moments need their weight's layout
        like = parameters[index]
        state[index] = {
            k: torch.empty_like(like).copy_(v) if v.shape == like.shape else v
            for k, v in values.items()
        }
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )
    for name, stream in streams.items():
        stream.set_state(part["stream"][name])
    return note


def _check_streams(
    path: Path, stored: dict[str, Tensor], streams: dict[str, Generator]
) -> None:
    for name, stream in streams.items():
        found, ours = stored[name].numel(), stream.get_state().numel()
        if found == ours:
            continue
        # Another `device` in the params file would be another run, which starts anew.
        begun, here, way = "a GPU", "the CPU", "where torch finds a GPU"
        if stream.device.type != "cpu":
            begun, here, way = (
                "the CPU",
                "a GPU",
                "by `CUDA_VISIBLE_DEVICES= make study PROFILE=local`",
            )
        raise StudyError(
            f"{path}: begun on {begun}, it cannot go on on {here}, whose random generators are others"
            f" ({name!r} has {found:,} bytes, not {ours:,}); go on {way}, or delete it to start anew"
        )
