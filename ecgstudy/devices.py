"""Where to compute, and in which precision."""

import os
import warnings

import numpy as np
import torch
from torch import Tensor

from ecgstudy.errors import StudyError
from ecgstudy.files import HELD


def pick_device(wanted: str) -> torch.device:
    """The device called `wanted`; ``"auto"`` is a GPU where there is one.

    Picking a GPU changes torch's settings for the whole process: float32 is not
    rounded to TF32, whose 10 bits swallow an attack's small steps, and sums are
    repeatable, so that a run that was killed and resumed on one GPU equals an unbroken
    one. ``CUBLAS_WORKSPACE_CONFIG`` is left as it is if set.

    Raises
    ------
    StudyError
        When a GPU is asked for, or reserved for this job, and torch finds none.
    """
    available, held = torch.cuda.is_available(), os.environ.get(HELD)
    if wanted == "auto":
        wanted = "cuda" if available or held else "cpu"
    device = torch.device(wanted)
    if device.type != "cuda":
        return device
    if not available and held:
        raise StudyError(
            f"this job holds GPU {held}, but torch {torch.__version__} finds none;"
            " install torch's CUDA build or a newer driver (`make doctor` looks), or"
            " compute on the CPU with PROFILE=local"
        )
    if not available:
        raise StudyError(
            f"device {wanted!r} was asked for, but torch finds no GPU; use 'cpu' or"
            " 'auto'"
        )
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.deterministic = True
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read as cuBLAS starts
    return device


def resident(array: np.ndarray, device: torch.device) -> Tensor:
    """`array` on the device, if that is a GPU with room for it; else it is not copied.

    A memory map is then read as it is needed, so that it may be larger than the memory.
    """
    with warnings.catch_warnings():  # torch warns that the array is read-only
        warnings.simplefilter("ignore", UserWarning)
        tensor = torch.from_numpy(array)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        if tensor.nbytes < free / 2:
            return tensor.to(device)
    return tensor


def pick_precision(wanted: str, device: torch.device) -> str:
    """Precision of the encoder in training.

    ``"auto"`` is bfloat16 where the hardware multiplies in it, else float32.
    """
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported()
    return "bfloat16" if native else "float32"
