"""What all figures share: settings, colours and markers of arms, notes, saving."""

import zlib
from base64 import b64encode
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import wraps
from html import escape
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import HTML
from matplotlib.figure import Figure

from ecgstudy.errors import StudyError
from ecgstudy.files import whole_file
from ecgstudy.pretraining.arms import Arm
from ecgstudy.registry import ARMS

WIDTH = 10.0
"""Of every figure but ECGs, in inches: as wide as a report's page."""
GREY, INK = "#8a8a8a", "#222222"
BLUE, ORANGE = "#0072B2", "#D55E00"
SYNTHETIC = "simulated ECGs: validates the pipeline only"
MASKING = "†: a gradient-masking check fails, robust AUROC may be too high"
ATTACK_SIGNS = "* on fewer records   l2: root mean square up to ε, not in the ensemble"
# Okabe–Ito and Tol hues, safe for colour-blind readers. An arm has its weighting's.
WEIGHTING_COLOURS = {
    "ip-hn": "#882255",
    "ip": "#0072B2",
    "hn": "#D55E00",
    "hcl": "#D55E00",
    "debiased": "#56B4E9",
    "clef": "#009E73",
    "clef-original": "#44AA99",
    "dclw": "#E69F00",
}
ARM_COLOURS = {
    "random": "#9b9b9b",
    "supervised": "#000000",
    "pgd-at": "#8C510A",
    "trades": "#BF812D",
    "mart": "#CC79A7",
    "features-lr": "#44BB99",
    "features-tree": "#AAAA00",
    "features-forest": "#225522",
    "simclr": "#666666",
    "supcon": "#AA4499",
    "supcon-margin": "#DDAA33",
    "rocl": "#332288",
    "acl": "#999933",
    "advcl": "#117733",
    "dynacl": "#AA4499",
    "deacl": "#6699CC",
    "clae": "#88CCEE",
    "clae-supcon": "#225555",
    "swaro": "#FFAABB",
    "claf": "#661100",
    "anchor": "#004D40",
    "adv-supcon": "#997700",
    "adv-supcon-labels": "#EE8866",
    "adv-supcon-noise": "#BBCC33",
    "ascl": "#EE3377",
}
OTHER_COLOURS = ("#004D40", "#117733", "#999933", "#AA4499", "#88CCEE", "#DDAA33")
CLASS_COLOURS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", INK)
VARIANTS = {
    "-temperature": ("P", "--"),
    "-shuffled": ("X", "--"),
    "-rsfgsm": (">", ":"),
    "-nfgsm": ("<", "-."),
    "-long": ("^", "-."),
}
"""Suffix of an arm that is another one but for a detail → marker and line."""
LANDMARKS = ("random", "supervised", "pgd-at", "simclr", "rocl")
"""Arms that orient the reader where there are too many to name all."""
SETTINGS = {
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e9e9e9",
    "lines.linewidth": 1.6,
    "lines.markersize": 5.5,
    "legend.frameon": False,
    "figure.dpi": 110,
    "svg.hashsalt": "ecgstudy",  # the same file each time
}


def styled(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """Decorator of functions that draw: settings hold inside, and change nowhere else.

    The figure is laid out before it is returned, for ticks take settings only then.
    """

    @wraps(draw)
    def drawn(*args: object, **options: object) -> Figure:
        with mpl.rc_context(SETTINGS):
            figure = draw(*args, **options)
            figure.draw_without_rendering()
        plt.close(figure)  # pyplot must not keep it open
        return figure

    return drawn


def new_panels(
    rows: int, columns: int, height: float, width: float = WIDTH, **options: object
) -> tuple[Figure, np.ndarray]:
    """A figure and its axes.

    Parameters
    ----------
    rows, columns
        Of panels.
    height, width
        Of a row of panels and of the whole figure, in inches.
    options
        Further arguments of `matplotlib.pyplot.subplots`.

    Returns
    -------
    tuple
        The figure, and its axes (rows, columns).
    """
    form = {"figsize": (width, height * rows), "layout": "constrained"}
    return plt.subplots(rows, columns, squeeze=False, **form, **options)


def flag_arms(table: pd.DataFrame) -> pd.DataFrame:
    """`table` with † after arms of which a masking check fails in any row.

    They are drawn hollow.
    """
    failed = table.loc[table["masking_ok"].eq(False), "arm"].unique()
    flagged = table["arm"].isin(failed)
    return table.assign(arm=table["arm"].where(~flagged, table["arm"] + " †"))


def find_arm(name: str) -> Arm | None:
    """The arm called `name`, † or not; None for one of a plugin not loaded."""
    try:
        return ARMS.find(name.removesuffix(" †"))
    except StudyError:
        return None


def find_variant(arm: str) -> str:
    """The suffix of `VARIANTS` that `arm` ends in, or none."""
    return next((suffix for suffix in VARIANTS if arm.endswith(suffix)), "")


def arm_colour(arm: str) -> str:
    """The colour of `arm` in every figure: its own, else that of its weighting."""
    arm = arm.removesuffix(" †")
    arm = arm.removesuffix(find_variant(arm))
    if arm in ARM_COLOURS:
        return ARM_COLOURS[arm]
    for name, colour in WEIGHTING_COLOURS.items():
        if arm == name or arm.endswith(f"-{name}"):
            return colour
    return OTHER_COLOURS[zlib.crc32(arm.encode()) % len(OTHER_COLOURS)]


def arm_marker(arm: str) -> str:
    """Diamond: reference; square: with adversaries; circle: clean views."""
    if variant := find_variant(arm.removesuffix(" †")):
        return VARIANTS[variant][0]
    row = find_arm(arm)
    if row is not None and row.group == "reference":
        return "D"
    return "s" if row is not None and row.adversary else "o"


def arm_look(arm: str) -> dict[str, str]:
    """Arguments of `Axes.plot`: how `arm` looks in every figure."""
    colour, variant = arm_colour(arm), find_variant(arm.removesuffix(" †"))
    return {
        "label": arm,
        "color": colour,
        "marker": arm_marker(arm),
        "linestyle": VARIANTS[variant][1] if variant else "-",
        "markerfacecolor": "white" if arm.endswith(" †") else colour,
    }


def arm_looks(arms: Iterable[str]) -> dict[str, object]:
    """Arguments of seaborn's functions: how arms look in every figure."""
    arms = list(dict.fromkeys(arms))
    return {
        "hue": "arm",
        "hue_order": arms,
        "palette": {arm: arm_colour(arm) for arm in arms},
        "style": "arm",
        "style_order": arms,
        "markers": {arm: arm_marker(arm) for arm in arms},
    }


def order_of(table: pd.DataFrame, column: str) -> list:
    """The different values of a column, in the table's order."""
    return list(dict.fromkeys(table[column]))


def add_notes(figure: Figure, table: pd.DataFrame, *notes: str) -> None:
    """Small print under `figure`, and what † means if a model in `table` has it."""
    if "masking_ok" in table and table["masking_ok"].eq(False).any():
        notes = (*notes, MASKING)
    figure.supxlabel("   ".join(notes), fontsize=8.5, x=0.01, ha="left")


def name_attacks(rows: pd.DataFrame) -> dict[str, str]:
    """Attack → its name on an axis, with the signs that `ATTACK_SIGNS` explains.

    `rows` are of ``robust_auroc.csv`` at one ε.
    """
    records = rows.groupby("attack", sort=False)["n_records"].min()
    names = {}
    for attack, fewer in (records < records.max()).items():
        name = "clean" if attack == "none" else short_attack(attack)
        names[attack] = f"{name} *" if fewer else name
    return names


def short_attack(name: str) -> str:
    """An attack's name for an axis: many leads in brackets are counted."""
    base, _, leads = name.rstrip("]").partition("[")
    count = leads.count("+") + 1
    return f"{base} [{count} leads]" if count > 2 else name


def save_figure(
    figure: Figure,
    folder: str | Path,
    name: str,
    values: pd.DataFrame,
    caption: str,
    synthetic: bool = False,
) -> HTML:
    """Write a figure as PNG and SVG, and the exact values behind it as CSV.

    Parameters
    ----------
    figure
        What to write.
    folder, name
        Where: ``<folder>/<name>.png`` and so on.
    values
        The numbers that the figure shows.
    caption
        One line that says what it shows; also its description for those who cannot
        see it.
    synthetic
        Whether its ECGs are simulated, which it then says.

    Returns
    -------
    HTML
        The figure with its caption and links, for a notebook that lies, or whose page
        lies, in a folder beside `folder`.
    """
    folder = Path(folder)
    if synthetic:
        figure.text(0, -0.01, SYNTHETIC, va="top", fontsize=8, color="#8a5a00")
    about = {"Title": name, "Description": caption}
    formats = {
        "png": {"dpi": 160, "metadata": {**about, "Software": None}},
        "svg": {"metadata": {**about, "Date": None, "Creator": None}},
    }
    with ExitStack() as files, mpl.rc_context(SETTINGS):  # all files or none
        for kind, options in formats.items():
            path = files.enter_context(whole_file(folder / f"{name}.{kind}"))
            figure.savefig(path, format=kind, bbox_inches="tight", **options)
        path = files.enter_context(whole_file(folder / f"{name}.csv"))
        values.to_csv(path, index=False, lineterminator="\n")
    png = b64encode((folder / f"{name}.png").read_bytes()).decode()
    said, place = escape(caption), f"../{folder.name}/{name}"
    links = [
        f'<a href="{place}.{kind}">{kind.upper()}</a>' for kind in (*formats, "csv")
    ]
    return HTML(
        f'<figure><img src="data:image/png;base64,{png}" alt="{said}">'
        f"<figcaption>{said} ({' · '.join(links)})</figcaption></figure>"
    )
