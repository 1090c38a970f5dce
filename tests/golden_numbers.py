"""Numbers as JSON that one can read, and what differs between two sets of them.

Nothing here knows the package.
"""

import hashlib
import json
import math
from importlib.metadata import version

import numpy as np
import pandas as pd
import torch
from torch import Generator, nn

UNSTORED = {
    "seconds", "attack_steps_per_second", "peak_memory_mb", "training_seconds",
    "step_ms", "note", "claim", "evidence", "runs", "check", "reason",
}  # fmt: skip
"""What depends on the hour, and prose: words may change where numbers must not."""
LONGEST = 36
"""Table columns with more rows than this are stored as a digest and a mean."""


def as_array(values) -> np.ndarray:
    """An array of a tensor or an array."""
    return (
        values.detach().numpy()
        if isinstance(values, torch.Tensor)
        else np.asarray(values)
    )


def digest(values) -> str:
    """The start of the SHA-256 of an array's type, shape and bytes."""
    array = np.ascontiguousarray(as_array(values))
    content = f"{array.dtype} {array.shape}".encode() + array.tobytes()
    return "sha256:" + hashlib.sha256(content).hexdigest()[:12]


def brief(values) -> dict:
    """Digest, mean and mean size of an array."""
    array = as_array(values)
    wide = array.astype(np.float64)
    return {"digest": digest(array), "mean": wide.mean(), "size": np.abs(wide).mean()}


def parts(tensors: dict[str, torch.Tensor]) -> dict:
    """Digest and mean size of each part of a model: its tensors sorted by name."""
    grouped: dict[str, list] = {}
    for name in sorted(tensors):
        grouped.setdefault(name.partition(".")[0], []).append(tensors[name])
    return {part: _joint(found) for part, found in grouped.items()}


def _joint(tensors: list[torch.Tensor]) -> dict:
    each = "".join(digest(tensor) for tensor in tensors)
    values = torch.cat([tensor.double().flatten() for tensor in tensors]).nan_to_num()
    joint = "sha256:" + hashlib.sha256(each.encode()).hexdigest()[:12]
    return {"digest": joint, "size": float(values.abs().mean()), "numbers": len(values)}


def columns(table: pd.DataFrame) -> dict:
    """Each column's values, or where there are many their digest and mean."""
    return {
        name: _column(values) for name, values in table.items() if name not in UNSTORED
    }


def _column(values: pd.Series):
    listed = plain(values.tolist())
    if len(listed) <= LONGEST:
        return listed
    content = hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:12]
    numbers = [value for value in listed if type(value) in (int, float)]
    mean = math.fsum(numbers) / len(numbers) if numbers else None
    return {"digest": f"sha256:{content}", "rows": len(listed), "mean": mean}


def without_times(content):
    """`content` without what `UNSTORED` names, at any depth."""
    if isinstance(content, dict):
        kept = {key: value for key, value in content.items() if key not in UNSTORED}
        return {key: without_times(value) for key, value in kept.items()}
    if isinstance(content, list):
        return [without_times(value) for value in content]
    return content


def plain(content):
    """`content` in plain JSON types; NaN is null."""
    if isinstance(content, dict):
        return {str(key): plain(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [plain(value) for value in content]
    if isinstance(content, np.generic):
        content = content.item()
    if content is pd.NA or (isinstance(content, float) and math.isnan(content)):
        return None
    return content


def machine() -> dict:
    """What decides the last bit: versions, the CPU's kind, how operations round.

    The operations are those of libraries, without this package: CPUs with the same
    instructions may still be given other code by MKL, oneDNN or OpenBLAS.
    """
    names = (
        "torch",
        "numpy",
        "scipy",
        "scikit-learn",
        "pandas",
        "neurokit2",
        "pywavelets",
    )
    kind = torch.backends.cpu.get_cpu_capability()
    return {
        "cpu": kind,
        **{name: version(name) for name in names},
        "operations": _operations(),
    }


def _operations() -> dict:
    x = torch.randn(32, 8, 1, 96, generator=Generator().manual_seed(0))
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    torch.manual_seed(0)
    conv, norm = (
        nn.Conv2d(8, 16, (1, 7), (1, 2), (0, 3), bias=False),
        nn.BatchNorm2d(16),
    )
    y = norm(conv.to(memory_format=torch.channels_last)(x))
    flat = y.square().mean((2, 3))
    recurrent = nn.LSTM(16, 8, batch_first=True, bidirectional=True)
    z, _ = recurrent(y.squeeze(2).mT)
    cosines = nn.functional.normalize(flat) @ nn.functional.normalize(flat).T
    loss = torch.logsumexp(cosines / 0.5, 1).sum() + z.sin().sum()
    (gradient,) = torch.autograd.grad(loss, x)
    matrix = cosines.detach().double().numpy()
    return {
        "convolution": digest(y.detach()),
        "recurrence": digest(z.detach()),
        "products": digest(cosines.detach()),
        "gradient": digest(gradient),
        "spectrum": digest(torch.view_as_real(torch.fft.rfft(x.detach()))),
        "float64": digest(matrix @ matrix),
        "inverse": digest(np.linalg.pinv(matrix)),
    }


# ---- Storing and comparing -------------------------------------------------------


def as_text(content, indent: int = 0, width: int = 110) -> str:
    """JSON in which whatever fits has one line."""
    line = json.dumps(content, ensure_ascii=False)
    if not isinstance(content, dict | list) or indent + len(line) <= width:
        return line
    inner = " " * (indent + 1)
    if isinstance(content, dict):
        items = content.items()
        lines = [
            f"{json.dumps(k, ensure_ascii=False)}: {as_text(v, indent + 1)}"
            for k, v in items
        ]
        return (
            "{\n"
            + ",\n".join(inner + line for line in lines)
            + "\n"
            + " " * indent
            + "}"
        )
    if any(isinstance(value, dict | list) for value in content):
        lines = [as_text(value, indent + 1) for value in content]
        return "[\n" + ",\n".join(inner + x for x in lines) + "\n" + " " * indent + "]"
    rows = [""]
    for item in (json.dumps(value, ensure_ascii=False) for value in content):
        if len(rows[-1]) + len(item) > width:
            rows.append("")
        rows[-1] += f" {item},"
    return "[" + ("\n" + inner).join(row.strip() for row in rows)[:-1] + "]"


def tolerance(name: str) -> tuple[float, float]:
    """Relative and absolute tolerance of a run's numbers on another kind of machine.

    They are about twice what was measured between AVX512, AVX2 and neither. Without
    training only sums round otherwise. Training under attack makes more of that: where
    a gradient is nearly 0, its sign decides whether a sample goes up or down by a whole
    step. Scores of an encoder after a few steps, by a head on nearly constant features,
    differ more, and an AUROC of twelve records changes by a whole pair of records, to
    which intervals from three seeds add theirs.
    """
    if name.startswith("arm "):
        return 2e-2, 2e-2
    if name == "statistics":
        return 2e-1, 2e-1
    trained = ("tiny study", "linear probe", "protocol", "features")
    return (5e-2, 1e-1) if name.startswith(trained) else (1e-4, 1e-5)


def differences(stored, found, within=None, where: str = "") -> list[str]:
    """One line for each place where `found` is not what was stored.

    Parameters
    ----------
    stored, found
        As from `compute`.
    within
        Relative and absolute tolerance of numbers; digests, words and verdicts, which
        follow from the numbers, are not compared then. None: equal to the last bit.
    """
    if isinstance(stored, dict) and isinstance(found, dict):
        if stored.keys() != found.keys():
            return [f"{where}: stored {sorted(stored)}, found {sorted(found)}"]
        pairs = [(key, stored[key], found[key]) for key in stored]
    elif isinstance(stored, list) and isinstance(found, list):
        if len(stored) != len(found):
            return [f"{where}: stored {len(stored)} values, found {len(found)}"]
        pairs = list(zip(range(len(stored)), stored, found, strict=True))
    else:
        same = _agree(stored, found, within)
        return [] if same else [f"{where}: stored {stored!r}, found {found!r}"]
    lines = []
    for key, one, other in pairs:
        lines += differences(one, other, within, f"{where}/{key}")
    return lines


def _agree(stored, found, within: tuple[float, float] | None) -> bool:
    if type(stored) is not type(found):
        return False
    if within is None or type(stored) is int:
        return stored == found
    if isinstance(stored, float):
        return math.isclose(stored, found, rel_tol=within[0], abs_tol=within[1])
    return True
