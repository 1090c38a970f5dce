"""What all plots share: style, colours of the arms, saving, labels that keep clear of one another."""

import zlib
from base64 import b64encode
from collections.abc import Mapping
from contextlib import AbstractContextManager
from io import BytesIO
from itertools import pairwise, product
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager

from ecgstudy.errors import StudyError
from ecgstudy.files import whole_files
from ecgstudy.params import target
from ecgstudy.pretraining.arms import Arm
from ecgstudy.pretraining.suffixes import get_arm

STAMP = "simulated ECGs: proves the machinery only"
GREY, INK = "#9b9b9b", "#222222"
# Okabe–Ito and Tol hues, safe for colour-blind readers: one a weighting, whatever it is added to.
WEIGHTING_COLOURS = {
    "ip-hn": "#882255", "ip": "#0072B2", "hn": "#D55E00", "hcl": "#D55E00", "debiased": "#56B4E9",
    "clef": "#009E73", "clef-original": "#44AA99", "dclw": "#E69F00",
}  # fmt: skip
ARM_COLOURS = {
    "random": "#9b9b9b", "supervised": "#000000", "pgd-at": "#8C510A", "trades": "#BF812D",
    "mart": "#CC79A7", "features-lr": "#44BB99", "features-tree": "#AAAA00", "features-forest": "#225522",
    "simclr": "#666666", "supcon": "#AA4499", "supcon-margin": "#DDAA33",
    "rocl": "#332288", "acl": "#999933", "advcl": "#117733", "dynacl": "#AA4499", "deacl": "#6699CC",
    "clae": "#88CCEE", "clae-supcon": "#225555", "swaro": "#FFAABB", "claf": "#661100", "anchor": "#004D40",
    "adv-supcon": "#997700", "adv-supcon-labels": "#EE8866", "adv-supcon-noise": "#BBCC33", "ascl": "#EE3377",
}  # fmt: skip
OTHER_COLOURS = (
    "#004D40",
    "#117733",
    "#999933",
    "#AA4499",
    "#88CCEE",
    "#DDAA33",
    "#661100",
    "#6699CC",
)
CLASS_COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#222222",
)
CONTROL_MARKERS = {"-temperature": "P", "-shuffled": "X"}
VARIANTS = {
    "-rsfgsm": (">", ":"),
    "-nfgsm": ("<", "-."),
    "-long": ("^", (0, (6, 2))),
} | {suffix: (marker, "--") for suffix, marker in CONTROL_MARKERS.items()}
"""Suffix of an arm that is another one but for a detail → marker and line; its colour is the other's."""
DAGGER_NOTE = "a gradient-masking check fails, robust AUROC may be too high"


def prefer_own_fonts() -> None:
    """Let matplotlib take its fonts from its own files: a machine's DejaVu Sans may have other glyphs.

    A figure is then the same file on every machine with these versions.
    """
    own = Path(mpl.get_data_path(), "fonts", "ttf").resolve()
    for file in sorted(own.glob("DejaVuSans*.ttf")):
        fontManager.addfont(file)
    fontManager.ttflist.sort(
        key=lambda font: Path(font.fname).parent != own
    )  # of equals, the first is taken


prefer_own_fonts()


def style() -> AbstractContextManager:
    """Matplotlib settings of all figures, as a context (and decorator): no setting changes outside it."""
    return mpl.rc_context({
        "font.family": "DejaVu Sans", "font.size": 9, "axes.titlesize": 9.5, "axes.labelsize": 9,
        "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False,
        "axes.edgecolor": "#666666", "axes.labelcolor": INK, "axes.grid": True, "axes.axisbelow": True,
        "grid.color": "#e9e9e9", "grid.linewidth": 0.8, "xtick.color": "#444444", "ytick.color": "#444444",
        "lines.linewidth": 1.6, "lines.markersize": 5, "legend.frameon": False, "figure.dpi": 110,
        "svg.hashsalt": "ecgstudy", "svg.fonttype": "path",
    })  # fmt: skip


def stamped(figure: Figure, synthetic: bool, alt: str = "") -> Figure:
    """`figure`, with a note that its ECGs are simulated if they are, and shown with the description `alt`."""
    if synthetic and STAMP not in {text.get_text() for text in figure.texts}:
        figure.text(
            0.0,
            -0.01,
            STAMP,
            ha="left",
            va="top",
            fontsize=7.5,
            style="italic",
            color="#8a5a00",
        )
    if alt:
        image = BytesIO()
        figure.savefig(image, format="png", bbox_inches="tight", facecolor="white")
        _shown_as(figure, image.getvalue(), alt)
    return figure


def _shown_as(figure: Figure, png: bytes, alt: str) -> None:
    """Notebooks show these bytes and keep the description, whichever matplotlib backend is active."""
    image = b64encode(png).decode("ascii")
    figure._repr_mimebundle_ = lambda **_: (
        {"image/png": image},
        {"image/png": {"alt": alt}},
    )


def save_figure(
    figure: Figure,
    folder: str | Path,
    name: str,
    values: pd.DataFrame,
    *,
    alt: str,
    synthetic: bool,
) -> Figure:
    """Write ``name.png``, ``name.svg`` and, with the exact values behind it, ``name.csv``.

    The files are the same bytes each time. `alt` describes the figure to those who cannot see it; it is
    kept in both images and shown by reports. Returns `figure`, which a notebook then displays.
    """
    stamped(figure, synthetic)
    about = {"Title": name, "Description": alt}
    extra = {"png": {"dpi": 160, "metadata": {**about, "Software": None}}}
    extra["svg"] = {"metadata": {**about, "Date": None, "Creator": None}}
    form = {"bbox_inches": "tight", "pad_inches": 0.08, "facecolor": "white"}
    with style(), whole_files() as new:
        for kind, options in extra.items():
            figure.savefig(
                new(Path(folder) / f"{name}.{kind}"), format=kind, **form, **options
            )
        values.to_csv(
            new(Path(folder) / f"{name}.csv"),
            index=False,
            lineterminator="\n",
            encoding="utf-8",
        )
    _shown_as(figure, (Path(folder) / f"{name}.png").read_bytes(), alt)
    return figure


def arm_colour(arm: str) -> str:
    """The colour of `arm` in every figure: that of its weighting, else its own; unknown ones share a few."""
    if (suffix := _variant(arm)) is not None:
        return arm_colour(arm.removesuffix(suffix))
    if arm in ARM_COLOURS:
        return ARM_COLOURS[arm]
    for name, colour in WEIGHTING_COLOURS.items():
        if arm == name or arm.endswith(f"-{name}"):
            return colour
    return OTHER_COLOURS[zlib.crc32(arm.encode()) % len(OTHER_COLOURS)]


def arm_marker(arm: str) -> str:
    """Diamond: reference; square: trained with adversaries; circle: clean views; others: `VARIANTS`."""
    if (suffix := _variant(arm)) is not None:
        return VARIANTS[suffix][0]
    if (row := known_arm(arm)) is None:
        return "o"
    return "D" if row.group == "reference" else "s" if row.adversary else "o"


def arm_look(arm: str, rows: pd.DataFrame, grey: bool = False) -> dict[str, str]:
    """Colour, marker and line of `arm`: hollow if its `rows` fail a masking check, broken for `VARIANTS`."""
    colour = GREY if grey else arm_colour(arm)
    line = VARIANTS.get(_variant(arm), ("", "-"))[1]
    filling = "white" if fails_masking(rows) else colour
    return {"color": colour, "marker": arm_marker(arm), "ls": line, "mfc": filling}


def _variant(arm: str) -> str | None:
    """The suffix of `VARIANTS` that `arm` ends in."""
    return next((suffix for suffix in VARIANTS if arm.endswith(suffix)), None)


def daggered(arm: str, rows: pd.DataFrame) -> str:
    """`arm`, with † if a masking check fails in its `rows`."""
    return arm + " †" * fails_masking(rows)


def known_arm(name: str) -> Arm | None:
    """The arm called `name`; None for one of a plugin that is not loaded now."""
    try:
        return get_arm(name)
    except StudyError:
        return None


def new_panels(
    rows: int, columns: int, width: float, height: float, **options: object
) -> tuple[Figure, np.ndarray]:
    """Figure and axes (rows, columns), each panel `width` × `height` inches; no window manager knows it."""
    figure, axes = plt.subplots(
        rows,
        columns,
        figsize=(width * columns, height * rows),
        squeeze=False,
        layout="constrained",
        **options,
    )
    plt.close(figure)
    return figure, axes


def is_true(column: pd.Series) -> pd.Series:
    """Where `column` is True, also after a round through CSV with missing values."""
    return column.astype(str) == "True"


def fails_masking(rows: pd.DataFrame) -> bool:
    """Whether a masking check failed in any of `rows` (unknown and not applicable count as no)."""
    return "masking_ok" in rows and bool(
        (rows["masking_ok"].astype(str) == "False").any()
    )


FEWER = "* on fewer records than the others"
LARGER_BALL = "ℓ2: root mean square at most ε, a larger set; not in the ensemble"


def in_larger_ball(attacks: pd.Series) -> pd.Series:
    """Whether attacks (names) have an ℓ2 budget, which is larger than that of the others."""
    return attacks.str.replace(r"\[.*", "", regex=True).str.endswith("-l2")


def of_all_seeds(table: pd.DataFrame, protocol: str) -> pd.DataFrame:
    """The rows of ``robust_auroc.csv`` that are of all seeds together, under one protocol."""
    return table[(table["seed"].astype(str) == "all") & (table["protocol"] == protocol)]


def at_headline(table: pd.DataFrame, headline: Mapping[str, float]) -> pd.DataFrame:
    """The rows of a table of results that are clean or at the headline ε, without natural corruptions.

    `headline` is ε (mV) by data set; of a transfer, that of the data set tested on.
    """
    tested = [
        target(*where)
        for where in zip(table["dataset"], table["protocol"], strict=True)
    ]
    budget = pd.Series(
        [headline.get(name, np.nan) for name in tested], table.index, dtype=float
    )
    clean = (table["attack"] == "none") & (table["epsilon_mv"] == 0)
    return table[
        table["severity"].isna() & (clean | np.isclose(table["epsilon_mv"], budget))
    ]


def corrupted(table: pd.DataFrame) -> pd.DataFrame:
    """The rows under natural corruptions, and the clean ones as severity 0.

    Raises
    ------
    StudyError
        When there are no corruptions.
    """
    if table["severity"].isna().all():
        raise StudyError(
            "the table has no natural corruptions: name some in evaluation.corruptions"
        )
    kept = table[table["severity"].notna() | (table["attack"] == "none")]
    return kept.assign(severity=kept["severity"].fillna(0).astype(int))


def dagger_note(rows: pd.DataFrame, sign: str = "†") -> str:
    """What † means, if a masking check fails in any of `rows`."""
    return f"{sign} {DAGGER_NOTE}" * fails_masking(rows)


def note_beneath(figure: Figure, *notes: str) -> None:
    """Small print under `figure`; empty notes are left out."""
    if text := "   ".join(filter(None, notes)):
        figure.supxlabel(text, fontsize=8, x=0.01, ha="left")


def _spread(values: np.ndarray, gap: float, low: float, high: float) -> np.ndarray:
    """Positions near `values`, in their order, at least `gap` apart and within low … high."""
    placed = np.array(values, dtype=float)
    order = np.argsort(placed, kind="stable")
    for before, after in pairwise(order):
        placed[after] = max(placed[after], placed[before] + gap)
    placed[order[-1]] = min(placed[order[-1]], max(high, low + gap * (len(order) - 1)))
    for after, before in pairwise(order[::-1]):
        placed[before] = min(placed[before], placed[after] - gap)
    return placed


def label_ends(
    axes: Axes, x: float, values: list, names: list[str], colours: list[str]
) -> None:
    """Names right of the curves' last points, kept apart, each tied to its curve by a thin line."""
    (low, high), height = axes.get_ylim(), axes.figure.get_size_inches()[1]
    rows = axes.get_subplotspec().get_gridspec().nrows
    gap = 0.19 * (high - low) / (height / rows - 0.8)
    for value, name, colour, y in zip(
        values, names, colours, _spread(values, gap, low, high), strict=True
    ):
        axes.annotate(name, (x, value), (1.06, (y - low) / (high - low)), textcoords="axes fraction",
                      va="center", annotation_clip=False, **_tied(colour))  # fmt: skip


def _tied(colour: str) -> dict:
    line = {
        "arrowstyle": "-",
        "color": colour,
        "lw": 0.6,
        "shrinkA": 0,
        "shrinkB": 3,
        "relpos": (0, 0.5),
    }
    return {"color": colour, "fontsize": 8.5, "arrowprops": line}


def label_points(
    axes: Axes, points: list, names: list[str], colours: list[str]
) -> None:
    """Names beside points, each at the nearest place that covers no point and no other name."""
    axes.margins(0.12)
    axes.figure.draw_without_rendering()
    centres = axes.transData.transform(points) * 72 / axes.figure.dpi
    taken = [np.array([*(c - 5), *(c + 5)]) for c in centres]
    for point, centre, name, colour in zip(
        points, centres, names, colours, strict=True
    ):
        size = np.array([5.6 * len(name), 10.0])
        boxes = []
        for radius, angle in product(
            (9, 16, 26, 40, 58), np.pi * np.arange(3, 27, 2) / 12
        ):
            direction = np.array([np.cos(angle), np.sin(angle)])
            middle = centre + radius * direction + direction * size / 2
            boxes.append(np.concatenate([middle - size / 2, middle + size / 2]))
        covered = [sum(_overlap(box, other) for other in taken) for box in boxes]
        box = boxes[int(np.argmin(covered))]
        taken.append(box)
        offset = (box[:2] + box[2:]) / 2 - centre
        box = {"fc": "#ffffffcc", "ec": "none", "pad": 0.8}
        axes.annotate(name, point, offset, textcoords="offset points", ha="center", va="center", zorder=5,
                      bbox=box, **_tied(colour))  # fmt: skip


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Area that the boxes (x0, y0, x1, y1) share."""
    return float(
        np.prod(np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None))
    )


def epsilon_axis(axes: Axes, epsilons: pd.Series) -> list[float]:
    """Evenly spaced budgets, 0 (clean) included; returns them in order."""
    ordered = sorted(set(epsilons))
    axes.set_xticks(range(len(ordered)), [f"{e:g}" for e in ordered])
    axes.set(xlabel="perturbation budget ε (mV)", ylim=(0, 1.02))
    axes.axhline(0.5, color="#666666", lw=1, ls=":")
    axes.grid(False, axis="x")
    return ordered


def draw_curve(
    axes: Axes, rows: pd.DataFrame, epsilons: list[float], color: str, **look: object
) -> float:
    """Shared AUROC of one model against ε with its band; returns the last value."""
    rows = rows.sort_values("epsilon_mv")
    x = [epsilons.index(e) for e in rows["epsilon_mv"]]
    axes.plot(x, rows["auroc_shared"], color=color, **({"marker": "o"} | look))
    if "ci_low" in rows:
        axes.fill_between(
            x, rows["ci_low"], rows["ci_high"], color=color, alpha=0.12, lw=0
        )
    return rows["auroc_shared"].iloc[-1]
