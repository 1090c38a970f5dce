"""One training in several processes: each encodes its share of every batch.

Every process draws the batch and the random numbers of all its records, as one process
would, and keeps those of its own records (drawing takes 4 to 17 % of a view's time).
Signals are thus a process's own. Features, and all that follows from them (projections,
losses, logs), are those of the whole batch, so that losses need not know of processes.
Only the contrastive loss, whose cost grows with the square of the batch, shares its
anchors among the processes. In a single process the functions return what they are
given.
"""

import os
from collections.abc import Callable
from functools import partial

import torch
import torch.distributed as group
from torch import Tensor, nn
from torch.distributed.nn.functional import all_gather, all_reduce
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel


def join(device: torch.device) -> None:
    """Enter the group that `torchrun` describes, each process with its own GPU."""
    if device.type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    group.init_process_group("nccl" if device.type == "cuda" else "gloo")


def processes() -> int:
    """Number of processes of the group; 1 without one."""
    return group.get_world_size() if group.is_initialized() else 1


def is_first() -> bool:
    """Whether this process writes files."""
    return processes() == 1 or group.get_rank() == 0


# Gradients through `all_gather` and `all_reduce` are those of the *sum* of all
# processes' losses. Each process has the loss of the whole batch, and
# DistributedDataParallel averages gradients over processes, which gives the gradient of
# that loss.


def own_rows(rows: Tensor, batch: int) -> Tensor:
    """This process's part of `rows` (views × batch, …), which lie view below view."""
    if processes() == 1:
        return rows
    parts = rows.unflatten(0, (-1, processes(), batch // processes()))
    return parts[:, group.get_rank()].flatten(0, 1)


def all_rows(rows: Tensor, batch: int) -> Tensor:
    """All rows, of which every process has its `own_rows`, with gradient."""
    if processes() == 1:
        return rows
    share = batch // processes()
    parts = [part.unflatten(0, (-1, share)) for part in all_gather(rows)]
    return torch.stack(parts, 1).flatten(0, 2)


def draw(
    sample: Callable,
    shape: tuple[int, ...],
    like: Tensor,
    generator: torch.Generator,
    views: int = 1,
) -> Tensor:
    """Random numbers for this process's records, of those drawn for all records.

    Parameters
    ----------
    sample
        ``torch.rand`` or ``torch.randn``.
    shape
        (views × own records, …).
    like
        A tensor of the device and type wanted.
    generator
        In the same state in every process.
    views
        Number of views, which lie below each other.
    """
    every = (processes() * shape[0], *shape[1:])
    numbers = sample(every, generator=generator, device=like.device, dtype=like.dtype)
    return own_rows(numbers, every[0] // views)


def own_range(count: int) -> range:
    """This process's share of `count` rows that all processes have."""
    if processes() == 1:
        return range(count)
    rank = group.get_rank()
    return range(count * rank // processes(), count * (rank + 1) // processes())


def sum_over_processes(value: Tensor) -> Tensor:
    """Sum over the processes, with gradient."""
    return value if processes() == 1 else all_reduce(value)


def broadcast_first(value: Tensor) -> Tensor:
    """The first process's `value`, for what may differ between devices."""
    if processes() > 1:
        group.broadcast(value, 0)
    return value


def parallel(loss: Callable, model: nn.Module) -> Callable:
    """`loss`, whose backward pass leaves the whole batch's gradient in every process.

    Weights and buffers of `model` become those of the first process, and its encoders
    normalise by the whole batch. Other parts see the features of the whole batch
    anyway.
    """
    if processes() == 1:
        return loss
    for name, part in model.named_modules():
        if name.rpartition(".")[2] == "encoder":
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
    """Let batch norms normalise by the batch of all processes in training.

    As torch's SyncBatchNorm does, which runs on GPUs only. Names, parameters and
    buffers stay.
    """
    for norm in network.modules():
        if isinstance(norm, _BatchNorm):
            norm.forward = partial(_shared_batch_norm, norm)


def _shared_batch_norm(norm: _BatchNorm, x: Tensor) -> Tensor:
    if not norm.training:
        return type(norm).forward(norm, x)
    over = [0, *range(2, x.ndim)]
    own = torch.stack(torch.var_mean(x.float(), over, correction=0))
    # All processes have equally many records: the variance of all is the mean of their
    # variances plus the variance of their means.
    variances, means = torch.stack(all_gather(own)).unbind(1)  # (processes, channels)
    mean, variance = means.mean(0), variances.mean(0) + means.var(0, correction=0)
    count = processes() * x.numel() // x.shape[1]
    with torch.no_grad():
        norm.num_batches_tracked += 1
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(variance * count / (count - 1), norm.momentum)
    scale = norm.weight * (variance + norm.eps).rsqrt()
    per_channel = (-1, *[1] * (x.ndim - 2))
    centred = x - mean.view(per_channel)
    return (centred * scale.view(per_channel) + norm.bias.view(per_channel)).to(x.dtype)
