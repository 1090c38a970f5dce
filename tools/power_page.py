"""Write docs/power.md: the seeds and patients that a confirmatory study needs.

``python tools/power_page.py params/mitdb.yaml params/ptbxl.yaml``, or ``make power``,
reads the stored scores of these studies.
"""

import sys
from dataclasses import dataclass, replace

import numpy as np

from ecgstudy.analysis.contrasts import (
    PRIMARY,
    group_scores,
    outcomes,
    pair_by_seed,
)
from ecgstudy.analysis.power import (
    ALPHA,
    FAMILY,
    PLANNED,
    Components,
    components,
    patients_needed,
    seeds_needed,
)
from ecgstudy.analysis.scores import ScoreSet, read_scores
from ecgstudy.analysis.statistics import MIN_SEEDS
from ecgstudy.errors import StudyError, command
from ecgstudy.files import ROOT, write_text
from ecgstudy.study import ENSEMBLE, Paths, Study, load_study

EFFECTS = (0.01, 0.02)
UPPER = 0.9
"""Level of the one-sided upper limit of a pilot's variance between seeds."""
NEVER = "never"

FRAME = """# How many seeds a confirmatory study needs

Written by `make power` from the stored scores of the pilot ({studies}); do not edit.

The variance of a primary contrast (macro AUROC under `{attack}` at the headline ε,
protocol `slf`) over n seeds and k times the pilot's test patients is

    patients / k + seeds / n + models / (n k)

*patients* is what patients have in common for all models, *seeds* what seeds have in
common for all patients, *models* the rest: each model errs on its own patients. They
are estimated by the method of moments (negative estimates are 0), and new patients are
taken to be like these. The test is the study's own (two-way t, two-sided at 5 %), with
80 % power and at least {least} seeds; "adjusted" is Holm's first step, 5 % / {family}.
Since the pilot has few seeds, its variance between seeds has an 80 % interval (χ²), and
"upper end" is what the upper limit asks for (Browne 1995).
"""
SPREADS = ["contrast", "patients", "seeds", "80 % interval", "models"]
NEEDS = ["contrast", "effect", "seeds", "upper end", "seeds, adjusted", "upper end"]
NEEDS += [f"patients with {PLANNED} seeds", "patients, adjusted"]


@dataclass(frozen=True)
class Pilot:
    """One data set of a pilot: ε in mV, the test sample, components by contrast."""

    dataset: str
    epsilon_mv: float
    sample: ScoreSet
    contrasts: dict[str, Components]


def read_pilots(study: Study, paths: Paths) -> list[Pilot]:
    """The components of each primary contrast, of each data set of a study.

    Raises
    ------
    StudyError
        When no primary contrast has scores of two seeds.
    """
    scores, pilots = read_scores(paths, study.runs()), []
    for place, group in group_scores(scores, protocol="slf").items():
        found = {}
        for pair in PRIMARY.items() if place.is_headline else ():
            sets = pair_by_seed(group, pair)
            if sets.shape[1] > 1:
                sample = sets[0, 0]
                by_seed, left_out = (each[0] - each[1] for each in outcomes(sets))
                found[" − ".join(pair)] = components(by_seed, left_out, sample.df)
        if found:
            pilots.append(Pilot(place.dataset, place.epsilon_mv, sample, found))
    if not pilots:
        named = ", ".join(" − ".join(pair) for pair in PRIMARY.items())
        raise StudyError(
            f"study {study.study!r} has no scores under {ENSEMBLE!r} of two seeds of a"
            f" primary contrast ({named}); run `make study STUDY={study.study}` first"
        )
    return pilots


def mean_components(found: list[Components]) -> Components:
    """Mean variances of several contrasts."""
    mean = {
        key: float(np.mean([getattr(c, key) for c in found]))
        for key in ("patients", "seeds", "models")
    }
    return replace(found[0], **mean, pilot_seeds=min(c.pilot_seeds for c in found))


def write_page(pilots: list[Pilot], studies: str) -> str:
    """The page in Markdown, of the studies named `studies`."""
    frame = FRAME.format(
        studies=studies, attack=ENSEMBLE, least=MIN_SEEDS, family=FAMILY
    )
    return "\n".join([frame, *map(_section, pilots)])


def _section(pilot: Pilot) -> str:
    patients, rows = len(pilot.sample.names), dict(pilot.contrasts)
    if len(rows) > 1:
        rows["mean variances"] = mean_components(list(rows.values()))
    spreads = [[name, *_deviations(c)] for name, c in rows.items()]
    needs = [
        [name, f"{effect:g}", *_needs(c, effect, patients)]
        for name, c in rows.items()
        for effect in EFFECTS
    ]
    seeds = min(c.pilot_seeds for c in rows.values())
    lines = [
        f"## {pilot.dataset}\n",
        f"The pilot: {seeds} seeds, {patients:,} test patients,"
        f" {len(pilot.sample.table):,} records, ε = {pilot.epsilon_mv:g} mV. Standard"
        " deviations in AUROC, of one seed and of these patients:\n",
        *_markdown([SPREADS, *spreads]),
        "\nWhat detects an effect:\n",
        *_markdown([NEEDS, *needs]),
        "",
    ]
    return "\n".join(lines)


def _deviations(c: Components) -> list[str]:
    low, high = c.at_limit(1 - UPPER).seeds, c.at_limit(UPPER).seeds
    variances = c.patients, c.seeds, low, high, c.models
    patients, seeds, low, high, models = (f"{np.sqrt(v):.4f}" for v in variances)
    return [patients, seeds, f"{low} to {high}", models]


def _needs(found: Components, effect: float, patients: int) -> list[str]:
    """Seeds, alone and adjusted, each with its upper end; patients likewise."""
    levels = (ALPHA, ALPHA / FAMILY)
    seeds = [
        seeds_needed(c, effect, alpha)
        for alpha in levels
        for c in (found, found.at_limit(UPPER))
    ]
    more = [patients_needed(found, effect, alpha) * patients for alpha in levels]
    return [f"{np.ceil(n):,.0f}" if np.isfinite(n) else NEVER for n in seeds + more]


def _markdown(rows: list[list[str]]) -> list[str]:
    """A table, one string a line; the first row is its header."""
    rows.insert(1, ["---"] * len(rows[0]))
    return ["| " + " | ".join(row) + " |" for row in rows]


@command
def main(params: list[str]) -> None:
    """Write ``docs/power.md`` from the scores of these studies."""
    if not params:
        raise StudyError(
            "name the pilot's params files: python tools/power_page.py params/x.yaml …"
        )
    studies = [load_study(name) for name in params]
    pilots = [p for s in studies for p in read_pilots(s, Paths(s.study))]
    names = ", ".join(f"`{name}`" for name in params)
    write_text(ROOT / "docs" / "power.md", write_page(pilots, names))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
