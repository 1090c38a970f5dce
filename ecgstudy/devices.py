"""Where to compute, and in which precision."""

import torch

from ecgstudy.errors import StudyError


def pick_device(wanted: str) -> torch.device:
    """The device called `wanted`; ``"auto"`` is a GPU where there is one.

    Raises
    ------
    StudyError
        When a GPU is asked for and there is none.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise StudyError("device 'cuda' was asked for, but torch finds no GPU; use 'cpu' or 'auto'")
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(wanted)


def pick_precision(wanted: str, device: torch.device) -> str:
    """Precision of the encoder in training: ``"auto"`` is bfloat16 where the hardware multiplies in it."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported()
    return "bfloat16" if native else "float32"
