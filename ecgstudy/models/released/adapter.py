"""Encoders from elsewhere: a released network that takes our ECGs, adapted inside the model.

Leads, rate, filters, scale and length are changed by differentiable operations, so that attacks stay what
they are: perturbations in mV of the user's signal. `ecgstudy.models.encoders.Encoder` leaves the signals in mV for
these networks, which have a scale of their own.
"""

import copy
import re
import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ecgstudy.errors import StudyError
from ecgstudy.models.backbones import DualBatchNorm, encoder
from ecgstudy.models.released import Released, signals
from ecgstudy.models.released.weights import fit_weights, released_weights
from ecgstudy.registry import PLUGIN


class SwitchedNorm(DualBatchNorm):
    """Released batch norm, doubled for dual statistics, which a network calls that knows of one kind only.

    Both sets start as released. `adversarial` is set before each pass.
    """

    def __init__(self, norm: nn.Module, dual: bool):
        nn.Module.__init__(self)
        self.norms = nn.ModuleList(copy.deepcopy(norm) for _ in range(2 if dual else 1))
        self.adversarial = True

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x, self.adversarial)


class Adapted(nn.Module):
    """A released network behind its adaptation; a backbone for `ecgstudy.models.encoders.Encoder`.

    Parameters
    ----------
    released
        The network and what it takes.
    leads
        Names of the data's leads.
    fs
        The data's sampling rate in Hz.
    dual
        Separate statistics for adversarial input, where the network has batch norms. Layer and group norms
        keep no statistics, so there is nothing to double in a network that has only these, or none.
    """

    takes_mv = True

    def __init__(
        self, released: Released, leads: tuple[str, ...], fs: float, dual: bool
    ):
        super().__init__()
        self.takes, self.features = released.takes, released.features
        kernel, self.up, self.down = signals.resampler(fs, self.takes.fs)
        matrix = signals.lead_matrix(self.takes.leads, leads)
        self.register_buffer("kernel", kernel.float(), persistent=False)
        self.register_buffer("matrix", matrix.float(), persistent=False)
        self.net = switched(released.net, dual)

    def adapted(self, x: Tensor) -> Tensor:
        """(records, leads, samples) → (records, windows, the network's leads, its samples)."""
        x = torch.einsum("wl,rls->rws", self.matrix, x)
        if self.up != self.down:
            x = signals.resampled(x, self.kernel, self.up, self.down)
        x = signals.less_median(signals.filtered(x, self.takes), self.takes)
        return signals.windows(signals.scaled(x, self.takes.scale), self.takes)

    def forward(self, x: Tensor, adversarial: bool) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            seen = self.adapted(x.squeeze(2))
        for module in self.net.modules():
            if isinstance(module, SwitchedNorm):
                module.adversarial = adversarial
        features = self.net(seen.flatten(0, 1)).unflatten(0, seen.shape[:2])
        return features.to(torch.promote_types(features.dtype, torch.float32)).mean(1)


def switched(net: nn.Module, dual: bool) -> nn.Module:
    """`net` with its batch norms in `SwitchedNorm`, and without dropout.

    Dropout draws from torch's global generator, whose state no checkpoint holds: an interrupted run could not
    be continued exactly.
    """
    for name, child in net.named_children():
        if isinstance(child, _BatchNorm):
            setattr(net, name, SwitchedNorm(child, dual))
        elif isinstance(child, nn.modules.dropout._DropoutNd):
            child.p = 0.0
        else:
            switched(child, dual)
    return net


@encoder("pretrained")
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
    """A released network for `data_leads` (names, by spaces) at `data_fs` Hz; without `weights` a fresh one.

    Raises
    ------
    StudyError
        For an unknown factory, a lead that cannot be had, or weights that are missing or do not fit.
    """
    names = tuple(data_leads.split())
    if len(names) != leads:
        raise StudyError(
            f"the encoder was made for leads {data_leads}, and the data have {leads}"
        )
    released = find_factory(factory)(**options)
    if not isinstance(released, Released):
        raise StudyError(
            f"encoder.factory {factory!r} makes no ecgstudy.models.released.Released"
        )
    if weights is not None:
        tensors = released_weights(weights, sha256)
        fit_weights(released.weights, tensors, own_name(released), weights)
    return Adapted(released, names, data_fs, dual)


def own_name(released: Released) -> Callable[[str], str | None]:
    """Released name → name in our module; None for a name without use."""

    def rename(name: str) -> str | None:
        name = name.removeprefix(released.prefix)
        for old, new in released.aliases:
            name = name.replace(old, new)
        return None if re.fullmatch(released.unused, name) else name

    return rename


def factory_module(factory: str) -> ModuleType:
    """The module of a factory such as ``ecgstudy.models.released.net1d:clef``, or ``my_net:make`` of a plugin.

    Nothing else is ever imported: a params file alone must not run a stranger's code.

    Raises
    ------
    StudyError
        For any other module.
    """
    package = factory.partition(":")[0]
    wanted = rf"{PLUGIN}{re.escape(package)}_[0-9a-f]{{8}}"
    if plugins := [name for name in sys.modules if re.fullmatch(wanted, name)]:
        return sys.modules[plugins[-1]]
    try:
        if re.fullmatch(r"ecgstudy\.models\.released\.\w+", package):
            return import_module(package)
    except ModuleNotFoundError:
        pass
    raise StudyError(
        f"encoder.factory: {package!r} is neither a module of ecgstudy.models.released nor a plugin; for a network"
        f" of your own write {package.rsplit('.', 1)[-1]}.py and name it in PLUGINS="
    )


def find_factory(factory: str) -> Callable[..., Released]:
    """The function that a params file names as ``module:function``.

    Raises
    ------
    StudyError
        When its module has no such function of its own.
    """
    module, name = factory_module(factory), factory.partition(":")[2]
    found = getattr(module, name, None)
    if (
        name.startswith("_")
        or not callable(found)
        or found.__module__ != module.__name__
    ):
        raise StudyError(
            f"encoder.factory: {factory!r} is no function of {module.__name__}"
        )
    return found


def without_weights(options: dict) -> dict:
    """Options that build the same network without its released weights, to load trained ones into."""
    return {
        key: value for key, value in options.items() if key not in ("weights", "sha256")
    }
