"""Released ECG networks: what each takes, and how its weights are named."""

import re
from dataclasses import dataclass
from typing import Literal

from torch import nn


@dataclass(frozen=True)
class Input:
    """What a released network was trained on; ECGs are brought to it in the model.

    Attributes
    ----------
    leads
        Names, in the network's order.
    fs
        Sampling rate in Hz.
    samples
        Length. Longer records are seen in as few windows as cover them, whose features
        are averaged.
    scale
        ``mv``: as it is; ``lead``: mean 0, standard deviation 1 in each lead;
        ``record``: the same over all leads together; ``range``: from −1 to 1 in each
        lead.
    band_hz, band_order
        Butterworth band-pass forwards and backwards (``filtfilt``); None: none.
    notch_hz
        Notch of quality 30, forwards and backwards; None: none.
    baseline_s
        Width in s of the median filter whose output is subtracted; None: none.
    exact
        Shorter records are padded with zeros on both sides, after scaling; False: they
        go in as they are.
    """

    leads: tuple[str, ...]
    fs: float
    samples: int
    scale: Literal["mv", "lead", "record", "range"]
    band_hz: tuple[float, float] | None = None
    band_order: int = 4
    notch_hz: float | None = None
    baseline_s: float | None = None
    exact: bool = False


@dataclass(frozen=True)
class Released:
    """A network with fresh weights, and how those that its authors released fit.

    Attributes
    ----------
    net
        (records, leads, samples) as in `takes` → (records, features).
    features
        Number of features.
    takes
        What `net` was trained on.
    weights
        The module whose parameters have the released names: `net`, or one inside.
    prefix
        Stands before every released name.
    aliases
        Pairs of a part of released names and what it is called here.
    unused
        Regular expression of released names that a network of features has no use for.
    """

    net: nn.Module
    features: int
    takes: Input
    weights: nn.Module
    prefix: str = ""
    aliases: tuple[tuple[str, str], ...] = ()
    unused: str = "(?!)"

    def rename(self, released_name: str) -> str | None:
        """What a released weight is called in `weights`; None if it has no use."""
        name = released_name.removeprefix(self.prefix)
        for theirs, ours in self.aliases:
            name = name.replace(theirs, ours)
        return None if re.fullmatch(self.unused, name) else name
