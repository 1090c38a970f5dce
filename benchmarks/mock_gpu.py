"""An emulated GPU (mock CUDA device): the CPU computes, but tensors stay apart.

What a real GPU refuses is refused: operations on tensors of both devices, ``numpy()``
of a tensor that is not on the CPU, a generator of the other device. What makes a
program wait for a GPU is counted in `MockGpu.waits`, and every operation that would be
launched there in `MockGpu.launches`.
"""

import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from unittest import mock

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils import checkpoint
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")
GB = 2**30
COPIES = ("copy_", "_to_copy", "index")
"""Operations that may read a tensor of the other device; `index` its indices only."""
AWAITED = (
    "_local_scalar_dense equal is_nonzero masked_select nonzero repeat_interleave"
    " _unique2 unique_consecutive unique_dim"
).split()
"""Operations that end only when the program knows their outcome, or its shape."""
FREE = (
    "alias as_strided detach diagonal expand permute select slice split"
    " split_with_sizes squeeze t transpose unbind unfold unsqueeze view"
    " _reshape_alias _unsafe_view"
).split()
"""Operations that only look at memory in another way: nothing is launched."""


class MockGpu:
    """Which tensors are on the GPU, and what happened there."""

    def __init__(self) -> None:
        self.storages: set[StorageWeakRef] = set()
        self.waits: Counter[str] = Counter()
        self.launches: Counter[str] = Counter()
        self.makes_tensors = False
        """Whether the current call was given a tensor on the GPU: its new ones are
        there too."""

    def has(self, tensor: Tensor) -> bool:
        """Whether `tensor` is on the GPU."""
        return _storage(tensor) in self.storages

    def put(self, tensor: Tensor, on_gpu: bool) -> None:
        """Note where `tensor` is."""
        if on_gpu:
            self.storages.add(_storage(tensor))
        else:
            self.storages.discard(_storage(tensor))


def _storage(tensor: Tensor) -> StorageWeakRef:
    with torch._C.DisableTorchFunction():
        return StorageWeakRef(tensor.untyped_storage())


def _find_tensors(*values: object) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


class Generator(torch.Generator):
    """A source of random numbers for one device."""

    def __new__(cls, device: object = "cpu") -> "Generator":
        made = super().__new__(cls, "cpu")
        made.kind = torch.device(device).type
        return made


class _Operations(TorchDispatchMode):
    """Sees every operation, those of backward passes too."""

    def __init__(self, gpu: MockGpu):
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = _find_tensors(args, kwargs)
        on_gpu = [self.gpu.has(tensor) for tensor in given]
        if any(on_gpu):
            name = func._schema.name.removeprefix("aten::")
            self._check(name, given, on_gpu)
            self._count(name, given)
        result = func(*args, **(kwargs or {}))
        old = {_storage(tensor) for tensor in given}
        there = any(on_gpu) if given else self.gpu.makes_tensors
        for tensor in _find_tensors(result):
            if _storage(tensor) not in old:
                self.gpu.put(tensor, there)
        return result

    def _check(self, name: str, given: list[Tensor], on_gpu: list[bool]) -> None:
        # Numbers may come from the CPU.
        pairs = zip(given, on_gpu, strict=True)
        astray = [tuple(tensor.shape) for tensor, on in pairs if tensor.ndim and not on]
        allowed = name in COPIES and (name != "index" or on_gpu[0])
        if astray and not allowed:
            raise RuntimeError(
                f"{name}: all tensors must be on the same device; on the CPU: {astray}"
            )

    def _count(self, name: str, given: list[Tensor]) -> None:
        masks = [tensor for tensor in given[1:] if tensor.dtype == torch.bool]
        if name in AWAITED or (name in ("index", "index_put_") and masks):
            self.gpu.waits[name] += 1
        if name.rstrip("_") not in FREE:
            self.gpu.launches[name] += 1


class _Calls(TorchFunctionMode):
    """Sees what Python asks for: devices, and what only the CPU has."""

    def __init__(self, gpu: MockGpu):
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        owner = args[0] if args and isinstance(args[0], Tensor) else None
        there = owner is not None and self.gpu.has(owner)
        if name == "__get__":
            asked = resolve_name(func) or ""
            if asked.endswith(".is_cuda.__get__"):
                return there
            if asked.endswith(".device.__get__"):
                return GPU if there else CPU
        if there and name in ("numpy", "__array__"):
            raise TypeError(
                "can't convert cuda:0 device type tensor to numpy; use Tensor.cpu()"
            )
        if there and name == "tolist":
            self.gpu.waits[name] += 1
        if owner is not None and name in ("cpu", "cuda"):
            return self._move(owner, torch.device(name))
        if owner is not None and name == "to":
            return self._convert(owner, *args[1:], **kwargs)
        return self._call(func, args, kwargs, there)

    def _call(self, func, args: tuple, kwargs: dict, there: bool) -> object:
        """Call `func` on the CPU; what it makes is where it was to be made."""
        name = getattr(func, "__name__", "")
        wanted = kwargs.get("device")
        device = GPU if there else CPU
        if wanted is not None:
            device, kwargs["device"] = torch.device(wanted), CPU
        source = kwargs.get("generator")
        if isinstance(source, Generator) and source.kind != device.type:
            raise RuntimeError(
                f"{name}: a generator on {source.kind}, but a tensor on {device.type}"
            )
        outside = self.gpu.makes_tensors
        self.gpu.makes_tensors = any(map(self.gpu.has, _find_tensors(args, kwargs)))
        try:
            result = func(*args, **kwargs)
        finally:
            self.gpu.makes_tensors = outside
        if isinstance(result, Tensor):
            if name == "__deepcopy__":  # it copies memory by no operation
                self.gpu.put(result, there)
            elif wanted is not None:
                self.gpu.put(result, device.type == "cuda")
        return result

    def _convert(self, tensor: Tensor, *args: object, **kwargs: object) -> Tensor:
        """``tensor.to(…)``."""
        device, dtypes = kwargs.pop("device", None), []
        for each in args:
            if isinstance(each, Tensor):
                device, dtypes = GPU if self.gpu.has(each) else CPU, [each.dtype]
            elif isinstance(each, torch.dtype):
                dtypes = [each]
            elif isinstance(each, str | torch.device):
                device = each
        with torch._C.DisableTorchFunction():
            converted = tensor.to(*dtypes, **kwargs) if dtypes or kwargs else tensor
        if device is None:
            return converted
        return self._move(converted, torch.device(device))

    def _move(self, tensor: Tensor, device: torch.device) -> Tensor:
        on_gpu = device.type == "cuda"
        if self.gpu.has(tensor) == on_gpu:
            return tensor
        self.gpu.waits[f"to {device.type}"] += 1
        moved = tensor.clone()
        self.gpu.put(moved, on_gpu)
        return moved


TORCH_CUDA = {
    "is_available": lambda: True,
    "device_count": lambda: 1,
    "mem_get_info": lambda *_: (8 * GB, 8 * GB),
    "is_bf16_supported": lambda *_, **__: True,
    "get_device_name": lambda *_: "emulated GPU",
    "max_memory_allocated": lambda *_: GB,
    "memory_allocated": lambda *_: 0,
    "empty_cache": lambda: None,
    "reset_peak_memory_stats": lambda *_: None,
    "synchronize": lambda *_: None,
}
"""What ``torch.cuda`` answers."""


@contextmanager
def mock_gpu() -> Iterator[MockGpu]:
    """A GPU inside the block, for the modules of ours that are imported by then.

    What `pick_device` sets for the process, flags of torch and environment, is as
    before after the block.
    """
    gpu, autocast, matmul = MockGpu(), torch.autocast, torch.backends.cuda.matmul

    def cpu_autocast(_: str, *args: object, **kwargs: object) -> torch.autocast:
        return autocast("cpu", *args, **kwargs)

    patches = [
        *(mock.patch.object(torch.cuda, name, TORCH_CUDA[name]) for name in TORCH_CUDA),
        # Optimisers ask torch's CUDA build for the stream that captures the GPU's
        # work: there is none.
        mock.patch.object(torch.accelerator, "current_accelerator", return_value=None),
        mock.patch.object(torch, "autocast", cpu_autocast),
        mock.patch.dict(os.environ),
        torch.backends.cudnn.flags(enabled=False),  # there is no cuDNN
        # Backward passes are seen as operations, not as calls of Python: a recomputed
        # tensor's device is then not what it was.
        mock.patch.dict(
            checkpoint._allowed_determinism_checks_to_fns,
            {"default": lambda tensor: (tensor.shape, tensor.dtype)},
        ),
    ]
    for name, module in list(sys.modules.items()):
        ours = name.startswith(("ecgstudy", "benchmarks"))
        if ours and getattr(module, "Generator", None) is torch.Generator:
            patches.append(mock.patch.object(module, "Generator", Generator))
    with ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        stack.callback(setattr, matmul, "fp32_precision", matmul.fp32_precision)
        stack.enter_context(_Operations(gpu))
        stack.enter_context(_Calls(gpu))
        yield gpu
