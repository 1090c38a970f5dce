"""Where to compute, and in which precision."""

import os
import warnings

import numpy as np
import torch
from torch import Tensor

from ecgstudy.errors import StudyError
from ecgstudy.files import HELD


def pick_device(wanted: str) -> torch.device:
    """The device called `wanted`; ``"auto"`` is a GPU where there is one, and in a job that holds one.

    From then on float32 means float32 there, in the whole process: left to itself, cuDNN rounds the factors
    of convolutions to the 10 bits of TF32, which swallow an attack's small steps. And what is asked twice is
    meant to be answered alike, so that a run that was killed and repeated on one GPU equals an unbroken one,
    as on the CPU: left to themselves, cuDNN may add up gradients in any order, and cuBLAS take another
    algorithm where several streams share its memory. ``CUBLAS_WORKSPACE_CONFIG`` is left as it is if set.

    Raises
    ------
    StudyError
        When a GPU is asked for, or held (`ecgstudy.running.gpus`), and torch finds none.
    """
    found, held = torch.cuda.is_available(), os.environ.get(HELD)
    if wanted == "auto":
        wanted = "cuda" if found or held else "cpu"
    device = torch.device(wanted)
    if device.type == "cuda":
        if held and not found:
            raise StudyError(
                f"this job holds GPU {held}, but torch {torch.__version__} finds none; install torch's CUDA"
                " build or a newer driver (`make doctor` looks), or compute on the CPU with PROFILE=local"
            )
        if not found:
            raise StudyError(
                f"device {wanted!r} was asked for, but torch finds no GPU; use 'cpu' or 'auto'"
            )
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.deterministic = True
        os.environ.setdefault(
            "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
        )  # read when cuBLAS starts
    return device


def resident(array: np.ndarray, device: torch.device) -> Tensor:
    """`array` on the device, if that is a GPU with room for it; else the array itself, not copied.

    A memory map is then read as it is needed, so that it may be larger than the memory.
    """
    with warnings.catch_warnings():  # that it cannot be written to: nobody shall
        warnings.simplefilter("ignore", UserWarning)
        tensor = torch.from_numpy(array)
    room = (
        device.type == "cuda" and tensor.nbytes < torch.cuda.mem_get_info(device)[0] / 2
    )
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
