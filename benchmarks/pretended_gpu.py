"""A GPU of pretence: the CPU computes, but tensors on it and off it keep apart as with a real one.

What a real GPU refuses is refused: operations on tensors of both places, ``numpy()`` of a tensor that is not
on the CPU, a generator of the other place. What makes a program wait for a GPU is counted in `Places.waits`,
and every operation that would be launched there in `Places.launches`.
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
COPIES = {"copy_", "_to_copy", "index"}
"""Operations that may read a tensor of the other place; `index` its indices alone."""
AWAITED = {
    "_local_scalar_dense", "equal", "is_nonzero", "masked_select", "nonzero", "repeat_interleave", "_unique2",
    "unique_consecutive", "unique_dim",
}  # fmt: skip
"""Operations that end only when the program knows their outcome, or the shape of it."""
FREE = {
    "alias", "as_strided", "detach", "diagonal", "expand", "permute", "select", "slice", "split",
    "split_with_sizes", "squeeze", "t", "transpose", "unbind", "unfold", "unsqueeze", "view",
    "_reshape_alias", "_unsafe_view",
}  # fmt: skip
"""Operations that only look at memory in another way: nothing is launched."""


class Places:
    """Which tensors lie on the GPU, and what happened there."""

    def __init__(self) -> None:
        self.on_gpu: set[StorageWeakRef] = set()
        self.waits: Counter[str] = Counter()
        self.launches: Counter[str] = Counter()
        self.within = False
        """Whether the call under way was given a tensor on the GPU: it makes new ones there too."""

    def has(self, tensor: Tensor) -> bool:
        return _storage(tensor) in self.on_gpu

    def put(self, tensor: Tensor, gpu: bool) -> None:
        (self.on_gpu.add if gpu else self.on_gpu.discard)(_storage(tensor))


def _storage(tensor: Tensor) -> StorageWeakRef:
    with torch._C.DisableTorchFunction():
        return StorageWeakRef(tensor.untyped_storage())


def _tensors(*found: object) -> list[Tensor]:
    return [each for each in tree_leaves(found) if isinstance(each, Tensor)]


class Generator(torch.Generator):
    """A source of random numbers for one place."""

    def __new__(cls, device: object = "cpu") -> "Generator":
        made = super().__new__(cls, "cpu")
        made.place = torch.device(device).type
        return made


class _Operations(TorchDispatchMode):
    """Every operation, those of backward passes too."""

    def __init__(self, places: Places):
        super().__init__()
        self.places = places

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        places, given = self.places, _tensors(args, kwargs)
        there, name = (
            [places.has(each) for each in given],
            func._schema.name.removeprefix("aten::"),
        )
        if any(there):
            astray = [
                tuple(each.shape)
                for each, on in zip(given, there, strict=True)
                if not on and each.ndim
            ]
            if astray and (name not in COPIES or (name == "index" and not there[0])):
                raise RuntimeError(
                    f"{name}: all tensors must be on the same device; on the CPU: {astray}"
                )
            by_mask = name in ("index", "index_put_") and any(
                each.dtype == torch.bool for each in given[1:]
            )
            if name in AWAITED or by_mask:
                places.waits[name] += 1
            if name.rstrip("_") not in FREE:
                places.launches[name] += 1
        result = func(*args, **(kwargs or {}))
        old = {_storage(each) for each in given}
        for tensor in _tensors(result):
            if _storage(tensor) not in old:
                places.put(tensor, any(there) if given else places.within)
        return result


class _Calls(TorchFunctionMode):
    """What Python asks for: places, and things that only the CPU has."""

    def __init__(self, places: Places):
        super().__init__()
        self.places = places

    def __torch_function__(self, func, types, args=(), kwargs=None):
        places, kwargs, name = (
            self.places,
            dict(kwargs or {}),
            getattr(func, "__name__", ""),
        )
        owner = args[0] if args and isinstance(args[0], Tensor) else None
        there = owner is not None and places.has(owner)
        if name == "__get__" and (asked := resolve_name(func) or "").endswith(
            (".device.__get__", ".is_cuda.__get__")
        ):
            return there if "is_cuda" in asked else GPU if there else CPU
        if there and name in ("numpy", "__array__"):
            raise TypeError(
                "can't convert cuda:0 device type tensor to numpy; use Tensor.cpu() first"
            )
        if there and name == "tolist":
            places.waits[name] += 1
        if owner is not None and name in ("cpu", "cuda"):
            return self._moved(owner, torch.device(name))
        if owner is not None and name == "to":
            return self._to(owner, *args[1:], **kwargs)
        place = GPU if there else CPU
        if (wanted := kwargs.get("device")) is not None:
            place, kwargs["device"] = torch.device(wanted), CPU
        source = kwargs.get("generator")
        if isinstance(source, Generator) and source.place != place.type:
            raise RuntimeError(
                f"{name}: a generator on {source.place}, but a tensor on {place.type}"
            )
        outside, places.within = (
            places.within,
            any(map(places.has, _tensors(args, kwargs))),
        )
        try:
            result = func(*args, **kwargs)
        finally:
            places.within = outside
        copied = name == "__deepcopy__"  # copies memory by no operation
        if isinstance(result, Tensor) and (wanted is not None or copied):
            places.put(result, there if copied else place.type == "cuda")
        return result

    def _to(self, tensor: Tensor, *args: object, **kwargs: object) -> Tensor:
        where, kinds = (
            kwargs.pop("device", None),
            [each for each in args if isinstance(each, torch.dtype)],
        )
        for each in args:
            if isinstance(each, Tensor):
                where, kinds = GPU if self.places.has(each) else CPU, [each.dtype]
            elif isinstance(each, str | torch.device):
                where = each
        with torch._C.DisableTorchFunction():
            converted = tensor.to(*kinds, **kwargs) if kinds or kwargs else tensor
        return (
            converted if where is None else self._moved(converted, torch.device(where))
        )

    def _moved(self, tensor: Tensor, where: torch.device) -> Tensor:
        if self.places.has(tensor) == (where.type == "cuda"):
            return tensor
        self.places.waits[f"to {where.type}"] += 1
        moved = tensor.clone()
        self.places.put(moved, where.type == "cuda")
        return moved


@contextmanager
def pretended_gpu() -> Iterator[Places]:
    """A GPU inside the block, for the modules of ours that are imported by then.

    What `pick_device` sets for the process, flags of torch and environment, is as before after the block.
    """
    places, autocast, gb, matmul = (
        Places(),
        torch.autocast,
        2**30,
        torch.backends.cuda.matmul,
    )
    pretended = {
        "is_available": lambda: True, "device_count": lambda: 1, "mem_get_info": lambda *_: (8 * gb, 8 * gb),
        "is_bf16_supported": lambda *_, **__: True, "get_device_name": lambda *_: "pretended GPU",
        "max_memory_allocated": lambda *_: gb, "memory_allocated": lambda *_: 0, "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda *_: None, "synchronize": lambda *_: None,
    }  # fmt: skip
    ours = [
        module
        for name, module in sys.modules.items()
        if name.startswith(("ecgstudy", "benchmarks"))
    ]
    with ExitStack() as stack:
        for name, value in pretended.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        # Optimisers ask torch's CUDA build what captures the GPU's work: nothing does, and nobody is there.
        nobody = mock.patch.object(
            torch.accelerator, "current_accelerator", return_value=None
        )
        stack.enter_context(nobody)
        stack.enter_context(
            torch.backends.cudnn.flags(enabled=False)
        )  # which is not there
        stack.callback(setattr, matmul, "fp32_precision", matmul.fp32_precision)
        stack.enter_context(mock.patch.dict(os.environ))
        on_cpu = lambda _, *args, **kwargs: autocast("cpu", *args, **kwargs)  # noqa: E731
        stack.enter_context(mock.patch.object(torch, "autocast", on_cpu))
        for module in ours:
            if getattr(module, "Generator", None) is torch.Generator:
                stack.enter_context(mock.patch.object(module, "Generator", Generator))
        # On the way back Python's calls are not seen, operations are: a place is then not what it was.
        alike = {"default": lambda tensor: (tensor.shape, tensor.dtype)}
        stack.enter_context(
            mock.patch.dict(checkpoint._allowed_determinism_checks_to_fns, alike)
        )
        stack.enter_context(_Operations(places))
        stack.enter_context(_Calls(places))
        yield places
