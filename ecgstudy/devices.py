"""Where to compute, and in which precision."""

import warnings

import numpy as np
import torch
from torch import Tensor

from ecgstudy.errors import StudyError


def pick_device(wanted: str) -> torch.device:
    """The device called `wanted`; ``"auto"`` is a GPU where there is one.

    From then on float32 means float32 there, in the whole process: left to itself, cuDNN rounds the factors
    of convolutions to the 10 bits of TF32, which swallow an attack's small steps.

    Raises
    ------
    StudyError
        When a GPU is asked for and there is none.
    """
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(wanted)
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise StudyError(f"device {wanted!r} was asked for, but torch finds no GPU; use 'cpu' or 'auto'")
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return device


def resident(array: np.ndarray, device: torch.device) -> Tensor:
    """`array` on the device, if that is a GPU with room for it; else the array itself, not copied.

    A memory map is then read as it is needed, so that it may be larger than the memory.
    """
    with warnings.catch_warnings():  # that it cannot be written to: nobody shall
        warnings.simplefilter("ignore", UserWarning)
        tensor = torch.from_numpy(array)
    room = device.type == "cuda" and tensor.nbytes < torch.cuda.mem_get_info(device)[0] / 2
    return tensor.to(device) if room else tensor


def pick_precision(wanted: str, device: torch.device) -> str:
    """Precision of the encoder in training: ``"auto"`` is bfloat16 where the hardware multiplies in it."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported()
    return "bfloat16" if native else "float32"
