"""How many seeds and patients a confirmatory study needs, from the variances that a pilot's scores show.

``python -m ecgstudy.analysis.power params/mitdb.yaml params/ptbxl.yaml`` writes ``docs/power.md``.
"""

import sys
from bisect import bisect_left
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import chi2, norm

from ecgstudy.analysis.contrasts import PRIMARY, grouped, is_headline, outcomes, paired
from ecgstudy.analysis.scores import Sample, ScoreSet, read_scores
from ecgstudy.analysis.statistics import (
    HEAVY,
    MIN_SEEDS,
    critical_ratio,
    variance_parts,
)
from ecgstudy.errors import StudyError, command
from ecgstudy.files import ROOT, write_text
from ecgstudy.study import ENSEMBLE, Paths, Study, load_study

EFFECTS = (0.01, 0.02)
ALPHA = 0.05
FAMILY = 8
"""Four primary contrasts on two data sets: Holm's first step tests at ALPHA / FAMILY."""
POWER = 0.8
UPPER = 0.9
"""Level of the one-sided upper limit of a pilot's variance, for planning (Browne 1995, Stat. Med. 14)."""
PLANNED = 10
"""Seeds of the study for which the number of patients is asked."""
MOST = 1_000_000
NODES, NODE_WEIGHTS = np.polynomial.legendre.leggauss(400)


@dataclass(frozen=True)
class Components:
    """Variances of a difference of macro AUROC: of one seed, and of the pilot's test patients.

    With n seeds and k times the patients its mean has variance patients/k + seeds/n + models/(n k): what
    patients have in common for all models, what seeds have in common for all patients, and the rest.
    """

    patients: float
    seeds: float
    models: float
    df_patients: float
    pilot_seeds: int

    def at_limit(self, level: float) -> "Components":
        """With the one-sided limit of the variance between seeds at `level`, from the χ² distribution."""
        df = self.pilot_seeds - 1
        between = (self.seeds + self.models) * df / chi2.ppf(1 - level, df)
        return replace(self, seeds=max(between - self.models, 0.0))


@dataclass(frozen=True)
class Pilot:
    """One data set of a pilot: ε in mV, the test sample, and the components of each contrast."""

    dataset: str
    epsilon_mv: float
    sample: Sample
    contrasts: dict[str, Components]


def components(
    by_seed: np.ndarray, left_out: np.ndarray, df_patients: float
) -> Components:
    """Method of moments from `variance_parts`; a variance that is estimated as negative is 0.

    Parameters
    ----------
    by_seed, left_out
        (seeds,) differences and (seeds, patients) those without each patient; at least two seeds.
    df_patients
        Of `statistics.patient_df`.
    """
    n = len(by_seed)
    of_patients, of_seeds, of_both = variance_parts(by_seed, left_out)
    return Components(
        max(of_patients - of_both, 0.0),
        n * max(of_seeds - of_both, 0.0),
        n * of_both,
        df_patients,
        n,
    )


def power(
    found: Components,
    effect: float,
    seeds: float,
    alpha: float = ALPHA,
    patients: float = 1.0,
) -> float:
    """Probability that `statistics.two_way_t` finds a true difference `effect`, by the noncentral t.

    `seeds` may be infinite; `patients` is in multiples of the pilot's, and may be infinite too.
    """
    models = found.models / seeds / patients
    of_patients, of_seeds = found.patients / patients + models, found.seeds / seeds
    variance = of_patients + of_seeds
    if variance < 1e-16:
        return 1.0
    spread = of_patients**2 / (found.df_patients * patients)
    spread += (of_seeds + models) ** 2 / (seeds - 1) if of_seeds else 0.0
    df = min(variance**2 / max(spread, 1e-300), 1e6)
    share = (of_seeds + models) / (variance + models)
    critical = critical_ratio(1 - alpha, df, HEAVY * share * (1 - share), seeds)
    shift = effect / np.sqrt(variance)
    return outside(critical, df, shift)


def outside(critical: float, df: float, shift: float) -> float:
    """Probability that |t| > `critical`, for noncentral t.

    By quadrature over the quantiles of χ²: `scipy.stats.nct` has NaN where one of the tails underflows.
    """
    scale = np.sqrt(chi2.ppf((NODES + 1) / 2, df) / df)
    beyond = norm.sf(critical * scale - shift) + norm.cdf(-critical * scale - shift)
    return float(NODE_WEIGHTS @ beyond / 2)


def seeds_needed(found: Components, effect: float, alpha: float = ALPHA) -> float:
    """Fewest seeds, at least `MIN_SEEDS`, that detect `effect`; infinite where no number of seeds does."""
    if power(found, effect, np.inf, alpha) < POWER:
        return np.inf
    return _first(lambda n: power(found, effect, n, alpha) >= POWER, MIN_SEEDS)


def patients_needed(
    found: Components, effect: float, alpha: float = ALPHA, seeds: int = PLANNED
) -> float:
    """Multiple of the pilot's patients, in hundredths, that detects `effect` with `seeds`; or infinite."""
    if power(found, effect, seeds, alpha, np.inf) < POWER:
        return np.inf
    return (
        _first(lambda k: power(found, effect, seeds, alpha, k / 100) >= POWER, 100)
        / 100
    )


def _first(enough: Callable[[int], bool], low: int) -> float:
    """Smallest integer from `low` that is enough, if all beyond it are; infinite from `MOST` on."""
    numbers = range(low, MOST)
    place = bisect_left(numbers, True, key=enough)
    return numbers[place] if place < len(numbers) else np.inf


def pilot(study: Study, paths: Paths) -> list[Pilot]:
    """The components of each primary contrast in the primary outcome, of each data set.

    Raises
    ------
    StudyError
        When no primary contrast has scores of two seeds.
    """
    headline = {
        name: options.headline_epsilon_mv for name, options in study.datasets.items()
    }
    pilots = []
    for key, group in grouped(
        read_scores(paths, study.runs()), protocol="slf", attack=ENSEMBLE
    ).items():
        sets = {" − ".join(pair): paired(group, pair) for pair in PRIMARY.items()}
        sets = {name: pair for name, pair in sets.items() if pair and len(pair[0]) > 1}
        if sets and is_headline(key, headline, ENSEMBLE):
            found = {name: _components_of(pair) for name, pair in sets.items()}
            pilots.append(
                Pilot(key[0], key[3], next(iter(sets.values()))[0][0].sample, found)
            )
    if not pilots:
        named = ", ".join(
            f"{adaptive} − {standard}" for adaptive, standard in PRIMARY.items()
        )
        raise StudyError(
            f"study {study.study!r} has no scores under {ENSEMBLE!r} of two seeds of a primary contrast"
            f" ({named}); run `make study STUDY={study.study}` first"
        )
    return pilots


def _components_of(sets: list[list[ScoreSet]]) -> Components:
    by_seed, left_out = (values[0] - values[1] for values in outcomes(sets))
    return components(by_seed, left_out, sets[0][0].sample.df)


def typical(found: dict[str, Components]) -> Components:
    """Mean variances of several contrasts."""
    one = next(iter(found.values()))
    means = {
        k: float(np.mean([getattr(c, k) for c in found.values()]))
        for k in ("patients", "seeds", "models")
    }
    return replace(one, **means, pilot_seeds=min(c.pilot_seeds for c in found.values()))


# --- The page -----------------------------------------------------------------------------------

FRAME = """# How many seeds a confirmatory study needs

Written by `make power` from the stored scores of the pilot ({studies}); do not edit.

A primary contrast is a difference of macro AUROC under `{attack}` at the headline ε, protocol `slf`. With
n seeds and k times the pilot's test patients the variance of its mean over seeds is

    patients / k + seeds / n + models / (n k)

*patients* is what test patients have in common for all models, *seeds* what pretraining runs have in common
for all patients, *models* the rest: each model errs on its own patients. The first two are what the
jackknife over patients and the variance between seeds hold beyond the third (method of moments; negative
estimates are set to 0). That variance falls with 1/patients is an assumption: new patients like these,
and as evenly represented. Power is that of the study's own test (`two_way_t`, noncentral t), two-sided at
{alpha:.0%}: {power:.0%} is asked, with at least {least} seeds. "Adjusted" is Holm's first step, the worst
case: {alpha:.0%} / {family}.

The pilot has few seeds, so its variance between seeds is uncertain: an {width:.0%} interval from the χ²
distribution stands beside it, and "upper end" is what its upper limit asks for (Browne 1995).
"""


NEVER = "never"
NEEDS = ["contrast", "effect", "seeds", "upper end", "seeds, adjusted", "upper end"]
NEEDS += [f"patients with {PLANNED} seeds", "patients, adjusted"]


def page(pilots: list[Pilot], studies: str) -> str:
    """The page in Markdown, of the studies named `studies`."""
    levels = {"power": POWER, "alpha": ALPHA, "width": 2 * UPPER - 1}
    frame = FRAME.format(
        studies=studies, attack=ENSEMBLE, family=FAMILY, least=MIN_SEEDS, **levels
    )
    return "\n".join([frame, *map(_section, pilots)])


def _section(one: Pilot) -> str:
    """Sentences and tables of one data set."""
    mean, patients = typical(one.contrasts), len(one.sample.names)
    rows = one.contrasts | ({"mean variances": mean} if len(one.contrasts) > 1 else {})
    deviations = [[name, *_deviations(c)] for name, c in rows.items()]
    needs = [
        [
            name,
            f"{effect:g}",
            *_seeds(c, effect, ALPHA),
            *_seeds(c, effect, ALPHA / FAMILY),
        ]
        + [_patients(c, effect, alpha, patients) for alpha in (ALPHA, ALPHA / FAMILY)]
        for name, c in rows.items()
        for effect in EFFECTS
    ]
    lines = [
        f"## {one.dataset}\n",
        f"The pilot: {mean.pilot_seeds} seeds, {patients:,} test patients, {len(one.sample.y):,} records,"
        f" ε = {one.epsilon_mv:g} mV. For a contrast of mean variances:\n",
        *(_answer(mean, effect, patients) for effect in EFFECTS),
        "\nStandard deviations in AUROC, of one seed and of these patients:\n",
        *_markdown(
            [
                "contrast",
                "patients",
                "seeds",
                f"{2 * UPPER - 1:.0%} interval",
                "models",
            ],
            deviations,
        ),
        f"\nWhat detects an effect with {POWER:.0%} power:\n",
        *_markdown(NEEDS, needs),
    ]
    return "\n".join([*lines, ""])


def _deviations(c: Components) -> list[str]:
    """Standard deviations of patients, of seeds, the interval of these, and of models."""
    variances = (
        c.patients,
        c.seeds,
        c.at_limit(1 - UPPER).seeds,
        c.at_limit(UPPER).seeds,
        c.models,
    )
    patients, seeds, low, high, models = (f"{np.sqrt(v):.4f}" for v in variances)
    return [patients, seeds, f"{low} to {high}", models]


def _answer(mean: Components, effect: float, patients: int) -> str:
    """What detects `effect` in a contrast of mean variances, in words."""
    words = []
    for name, alpha in (("alone", ALPHA), ("adjusted", ALPHA / FAMILY)):
        seeds, upper = _seeds(mean, effect, alpha)
        more = _patients(mean, effect, alpha, patients)
        enough = (
            f"{PLANNED} seeds need {more} of them"
            if more != NEVER
            else f"{PLANNED} seeds are too few for any"
        )
        forbidden = f"no number of seeds, for the patients vary too much ({enough})"
        words.append(
            f"{name}, {forbidden if seeds == NEVER else f'{seeds} seeds (upper end: {upper})'}"
        )
    return f"- To detect **{effect:g}**: {'; '.join(words)}."


def _seeds(found: Components, effect: float, alpha: float) -> tuple[str, str]:
    """Seeds needed, at the estimate and at the upper end of the variance between seeds."""
    needed = (seeds_needed(c, effect, alpha) for c in (found, found.at_limit(UPPER)))
    return tuple(f"{n:,}" if np.isfinite(n) else NEVER for n in needed)


def _patients(found: Components, effect: float, alpha: float, patients: int) -> str:
    """Patients needed with `PLANNED` seeds, never fewer than the pilot's."""
    factor = patients_needed(found, effect, alpha)
    return f"{int(np.ceil(factor * patients)):,}" if np.isfinite(factor) else NEVER


def _markdown(header: list[str], rows: Iterable[list[str]]) -> list[str]:
    """A table in Markdown, one string a line."""
    cells = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(row) + " |" for row in cells]


@command
def main(params: list[str]) -> None:
    """Write ``docs/power.md`` from the scores of these studies."""
    if not params:
        raise StudyError(
            "name the pilot's params files: python -m ecgstudy.analysis.power params/mitdb.yaml …"
        )
    studies = [load_study(name) for name in params]
    pilots = [one for study in studies for one in pilot(study, Paths(study.study))]
    write_text(
        ROOT / "docs" / "power.md",
        page(pilots, ", ".join(f"`{name}`" for name in params)),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
