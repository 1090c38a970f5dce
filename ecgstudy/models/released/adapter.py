"""Encoders from elsewhere: a released network takes our ECGs, adapted in the model.

Leads, rate, filters, scale and length are changed by differentiable operations, so that
attacks stay what they are: perturbations in mV of the user's signal. These networks
have a scale of their own, so `ecgstudy.models.encoders` leaves the signals in mV.
"""

import copy
from collections.abc import Callable
from importlib import import_module

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from ecgstudy.errors import StudyError
from ecgstudy.models.encoders import load_state
from ecgstudy.models.layers import DualBatchNorm
from ecgstudy.models.released import Released, signals
from ecgstudy.models.released.weights import read_weights
from ecgstudy.params import factory_module
from ecgstudy.registry import ENCODERS


class SwitchedNorm(DualBatchNorm):
    """Released batch norm, doubled for adversarial input, which its network lacks.

    Both sets start as released. `adversarial` is set before each pass.
    """

    def __init__(self, norm: nn.Module, dual: bool):
        super().__init__(norm.num_features, dual, lambda _: copy.deepcopy(norm))
        self.adversarial = True

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x, self.adversarial)


class Adapted(nn.Module):
    """A released network behind its adaptation: a backbone for an `Encoder`.

    Parameters
    ----------
    released
        The network and what it takes.
    leads, fs
        Names of the data's leads, and their sampling rate in Hz.
    dual
        Separate batch norms for adversarial input. Other norms keep no statistics, so
        there is nothing to double in a network that has only these, or none.
    """

    takes_mv = True

    def __init__(
        self, released: Released, leads: tuple[str, ...], fs: float, dual: bool
    ):
        super().__init__()
        self.takes, self.features, self.fs = released.takes, released.features, fs
        matrix = signals.lead_matrix(self.takes.leads, leads)
        self.register_buffer("matrix", matrix.float(), persistent=False)
        self.net = _switch_norms(released.net, dual)
        self.in_time: dict[tuple, Tensor] = {}  # made once for each form of signals

    def adapt(self, x: Tensor) -> Tensor:
        """ECGs (records, leads, samples) as the network takes them.

        Returns (records, windows, the network's leads, its samples).
        """
        takes = self.takes
        x = torch.einsum("wl,rls->rws", self.matrix, x)
        windows = signals.cut_windows(x, round(takes.samples * self.fs / takes.fs))
        form = windows.shape[-1], x.dtype, x.device
        if form not in self.in_time:
            self.in_time[form] = signals.time_matrix(form[0], self.fs, takes).to(x)
        x = (windows @ self.in_time[form].T).flatten(0, 1)
        x = signals.subtract_median(x, takes)
        x = signals.pad_to_length(signals.rescale(x, takes.scale), takes)
        return x.unflatten(0, windows.shape[:2])

    def forward(self, x: Tensor, adversarial: bool) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            windows = self.adapt(x.squeeze(2))
        for module in self.net.modules():
            if isinstance(module, SwitchedNorm):
                module.adversarial = adversarial
        features = self.net(windows.flatten(0, 1)).unflatten(0, windows.shape[:2])
        at_least = torch.promote_types(features.dtype, torch.float32)
        return features.to(at_least).mean(1)


def _switch_norms(net: nn.Module, dual: bool) -> nn.Module:
    """`net` with its batch norms in `SwitchedNorm`, and without dropout.

    Dropout draws from torch's global generator, whose state no checkpoint holds: an
    interrupted run could not be continued exactly.
    """
    for name, child in net.named_children():
        if isinstance(child, _BatchNorm):
            setattr(net, name, SwitchedNorm(child, dual))
        elif isinstance(child, _DropoutNd):
            child.p = 0.0
        else:
            _switch_norms(child, dual)
    return net


@ENCODERS.register("pretrained")
def pretrained(
    leads: int,
    dual: bool,
    factory: str,
    data_leads: str,
    data_fs: float,
    weights: str | None = None,
    sha256: str | None = None,
    **options: float | str,
) -> Adapted:
    """A released network for our data.

    Parameters
    ----------
    leads
        Number of the data's leads.
    dual
        Separate batch norms for adversarial input.
    factory, options
        ``module:function`` that makes a `Released`, and its keyword arguments.
    data_leads, data_fs
        Names of the data's leads, by spaces, and their sampling rate in Hz.
    weights, sha256
        As of `read_weights`; without, the network's weights are fresh.

    Raises
    ------
    StudyError
        For an unknown factory, a lead that cannot be derived, or weights that are
        missing or do not fit.
    """
    names = tuple(data_leads.split())
    if len(names) != leads:
        raise StudyError(f"made for leads {data_leads}, and the data have {leads}")
    released = find_factory(factory)(**options)
    if not isinstance(released, Released):
        raise StudyError(
            f"encoder.factory {factory!r} makes no ecgstudy.models.released.Released"
        )
    if weights is not None:
        given = read_weights(weights, sha256)
        named = {released.rename(name): tensor for name, tensor in given.items()}
        named.pop(None, None)
        load_state(released.weights, named, weights)
    return Adapted(released, names, data_fs, dual)


def find_factory(factory: str) -> Callable[..., Released]:
    """The function that a params file names as ``module:function``.

    Raises
    ------
    StudyError
        When its module has no such function of its own.
    """
    module, name = factory_module(factory), factory.partition(":")[2]
    try:
        found = getattr(import_module(module), name, None)
    except ModuleNotFoundError:
        found = None
    if name.startswith("_") or getattr(found, "__module__", None) != module:
        raise StudyError(f"encoder.factory: {factory!r} is no function of {module}")
    return found
