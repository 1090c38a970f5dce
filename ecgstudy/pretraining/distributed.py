"""One training in several processes: each encodes its own records, all see the features of the whole batch.

Every process draws the batch and the random numbers of augmentations and attacks for all records, as one
process would, and keeps its own records' part (drawing takes 4 to 17 % of a view's time). Signals are thus
one's own; features and all that follows (projection, losses, logs) are the whole batch's, so that losses need
not know of processes. The contrastive loss alone, whose cost grows with the square of the batch, shares its
anchors. Without a process group, every function here returns what it was given.
"""

import os
from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as group
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel


def join(device: torch.device) -> None:
    """Enter the group that `torchrun` describes; on GPUs each process takes the one of its local rank."""
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    group.init_process_group("nccl" if device.type == "cuda" else "gloo")


def processes() -> int:
    """Processes of the group; 1 without one."""
    return group.get_world_size() if group.is_initialized() else 1


def is_first() -> bool:
    """Whether this process writes files."""
    return processes() == 1 or group.get_rank() == 0


class _Gather(torch.autograd.Function):
    """(…) of every process → (processes, …). Backward, each gets the sum of what all make of its part.

    Gradients are thus those of the *sum* of all processes' losses. Each process returns the loss of the whole
    batch, and DistributedDataParallel averages, which gives that loss's own gradient.
    """

    @staticmethod
    def forward(context, own: Tensor) -> Tensor:
        every = own.new_empty((processes(), *own.shape))
        group.all_gather(list(every), own.contiguous())
        return every

    @staticmethod
    def backward(context, gradient: Tensor) -> Tensor:
        own = torch.empty_like(gradient[0], memory_format=torch.contiguous_format)
        group.reduce_scatter(own, list(gradient.contiguous()))
        return own


def own_rows(rows: Tensor, batch: int) -> Tensor:
    """This process's records of `rows` (views × batch, …), views one below the other."""
    if processes() == 1:
        return rows
    parts = rows.unflatten(0, (-1, processes(), batch // processes()))
    return parts[:, group.get_rank()].flatten(0, 1)


def all_rows(rows: Tensor, batch: int) -> Tensor:
    """The inverse of `own_rows`, with gradient: every process's `rows`, in the order of one process."""
    if processes() == 1:
        return rows
    parts = _Gather.apply(rows).unflatten(1, (-1, batch // processes()))
    return parts.transpose(0, 1).flatten(0, 2)


def draw(
    sample: Callable, shape: tuple[int, ...], like: Tensor, generator: torch.Generator
) -> Tensor:
    """Random numbers (records, …) for one's own records: every process draws those of all."""
    every = (processes() * shape[0], *shape[1:])
    return own_rows(
        sample(every, generator=generator, device=like.device, dtype=like.dtype),
        every[0],
    )


def like_all_rows(rows: Tensor) -> Tensor:
    """A tensor of the shape of `all_rows`, to draw random numbers by; its values mean nothing."""
    return (
        rows
        if processes() == 1
        else rows[:1].expand(processes() * len(rows), *rows.shape[1:])
    )


def own_range(count: int) -> range:
    """This process's share of `count` rows that all processes have."""
    if processes() == 1:
        return range(count)
    return range(
        *(
            count * rank // processes()
            for rank in (group.get_rank(), group.get_rank() + 1)
        )
    )


def sum_over_processes(value: Tensor) -> Tensor:
    """Sum over the processes, with gradient."""
    return value if processes() == 1 else _Gather.apply(value).sum(0)


def broadcast_first(value: Tensor) -> Tensor:
    """The first process's `value`, for what could come out differently on another device."""
    if processes() > 1:
        group.broadcast(value, 0)
    return value


def parallel(loss: Callable, model: nn.Module) -> Callable:
    """`loss`, such that its backward pass leaves the whole batch's gradient in `model` in every process.

    Weights and buffers become those of the first process, and encoders normalise by the whole batch.
    """
    if processes() == 1:
        return loss
    for name, part in model.named_modules():
        if (
            name.rpartition(".")[2] == "encoder"
        ):  # the other parts see the whole batch anyway
            share_statistics(part)
    return DistributedDataParallel(_Objective(loss, model), forward_sync_buffers=False)


class _Objective(nn.Module):
    """A loss as a module, which is what DistributedDataParallel takes."""

    def __init__(self, loss: Callable, model: nn.Module):
        super().__init__()
        self.loss, self.model = loss, model

    def forward(self, *given: object) -> object:
        return self.loss(*given)


def share_statistics(network: nn.Module) -> None:
    """Let the batch norms of `network` normalise by the batch of all processes (equal parts) in training.

    torch's own SyncBatchNorm does this on GPUs only.
    """
    for norm in network.modules():
        if isinstance(norm, _BatchNorm):  # its names, parameters and buffers stay
            norm.forward = partial(_shared_batch_norm, norm)


def _shared_batch_norm(norm: _BatchNorm, x: Tensor) -> Tensor:
    if not norm.training:
        return type(norm).forward(norm, x)
    own = torch.stack(torch.var_mean(x.float(), [0, *range(2, x.ndim)], correction=0))
    variances, means = _Gather.apply(own).unbind(1)  # (processes, channels)
    mean, variance = means.mean(0), variances.mean(0) + means.var(0, correction=0)
    count = processes() * x.numel() // x.shape[1]
    with torch.no_grad():
        norm.num_batches_tracked += 1
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(variance * count / (count - 1), norm.momentum)
    scale = norm.weight * (variance + norm.eps).rsqrt()
    mean, scale, bias = (
        v.view(-1, *[1] * (x.ndim - 2)) for v in (mean, scale, norm.bias)
    )
    return ((x - mean) * scale + bias).to(x.dtype)
