"""Arms by name: a row of `ARMS`, with factors and a control as suffixes.

``rocl-ip-hn`` is the row ``rocl`` with inferior positives and hard negatives,
``rocl-hn-shuffled`` the control of ``rocl-hn``. Every combination that makes sense has
a name, whether the study runs it or not.
"""

from collections.abc import Iterable
from dataclasses import replace

import pandas as pd

from ecgstudy.errors import StudyError
from ecgstudy.pretraining.arms import HARD_NEGATIVES, TAU_PLUS, Arm
from ecgstudy.registry import ARMS, WEIGHTINGS

COMPOSED = (
    "debiased",
    "hcl",
    "rocl-ip",
    "rocl-debiased",
    "rocl-hn",
    "rocl-ip-hn",
    "advcl-ip",
    "advcl-hn",
    "advcl-ip-hn",
    "acl-hn",
    "claf-ip-hn",
    "rocl-clef",
    "rocl-clef-ip-hn",
)
"""The study's arms that are a row of `ARMS` with factors."""

ALIASES = {"debiased": "simclr-debiased", "hcl": "simclr-hn"}

A_INFONCE = "Yu et al. 2022 (A-InfoNCE); authors' code read"
FACTORS = {
    "ip": (
        "adversarial views are pulled to clean ones more than the reverse",
        A_INFONCE,
        {"weighting": (("inferior-positives", {"alpha": 0.2}),)},
    ),
    "hn": (
        "hard-negative reweighting with debiasing",
        A_INFONCE,
        {"weighting": HARD_NEGATIVES, "tau_plus": TAU_PLUS},
    ),
    "debiased": (
        "expected false negatives are subtracted from the negatives",
        "Chuang et al. 2020; authors' code read",
        {"tau_plus": TAU_PLUS},
    ),
    "clef": (
        "negatives weighted by difference in clinical risk",
        "CLEF's weights; authors' code read",
        {"weighting": (("clinical-risk", {}),)},
    ),
}
"""Suffix → idea, source and the fields that it adds to a row."""

SINGLE_STEP = {
    "rsfgsm": (
        "one inner step of 1.25 ε from a random start",
        "Wong et al. 2020 (RS-FGSM)",
        {"steps": 1, "step": 1.25},
    ),
    "nfgsm": (
        "one inner step of ε from noise of 2 ε, not clipped",
        "de Jorge et al. 2022 (N-FGSM)",
        {"steps": 1, "step": 1.0, "random_start": 2.0},
    ),
}
"""Suffix → idea, source and changes of the inner attack; the arm's base is its stem."""


def get_arm(name: str) -> Arm:
    """The arm called `name`: a row of `ARMS`, or one with factors and a control.

    Raises
    ------
    StudyError
        When there is none, naming those there are, or when its factors do not go
        together, saying why.
    """
    if name in ARMS:
        return ARMS[name]
    stem, _, suffix = ALIASES.get(name, name).rpartition("-")
    suffixes = (*FACTORS, *SINGLE_STEP, *CONTROLS)
    if not stem or suffix not in suffixes:
        raise StudyError(
            f"unknown arm {name!r}; known: {', '.join(arm_names())}; "
            f"suffixes: {', '.join(suffixes)}"
        )
    arm = get_arm(stem)
    try:
        if suffix in CONTROLS:
            return CONTROLS[suffix](arm)
        if suffix in SINGLE_STEP:
            return _shorten_attack(arm, stem, suffix)
        return _add_factor(arm, stem, suffix)
    except StudyError as error:
        raise StudyError(f"arm {name!r}: {error}") from None


ARMS.derive = get_arm


def _add_factor(arm: Arm, stem: str, suffix: str) -> Arm:
    idea, source, added = FACTORS[suffix]
    schemes = added.get("weighting", ())
    repeated = any(scheme in arm.weighting for scheme in schemes)
    if repeated or (not schemes and arm.tau_plus):
        raise StudyError(f"the factor -{suffix} is given twice")
    row = stem
    while row not in ARMS:
        row = ALIASES.get(row, row).rpartition("-")[0]
    original = dict(arm.original)
    if suffix == "hn" and arm.adversary:
        original["denominator"] = "mean"  # as in A-InfoNCE's code
    if suffix == "ip":
        # Gradients through the candidates would undo the asymmetry.
        original.pop("detach_candidates", None)
    return replace(
        _extend_description(arm, idea, source),
        group="adversarial adaptive" if arm.adversary else "adaptive",
        base=row,
        original=original,
        weighting=arm.weighting + schemes,
        tau_plus=added.get("tau_plus", arm.tau_plus),
    )


def _shorten_attack(arm: Arm, stem: str, suffix: str) -> Arm:
    if arm.adversary is None or arm.adversary.loss == "noise":
        raise StudyError(f"-{suffix} shortens an inner attack, and {stem!r} has none")
    idea, source, changes = SINGLE_STEP[suffix]
    return replace(
        _extend_description(arm, idea, source),
        base=stem,
        adversary=replace(arm.adversary, **changes),
        original_attack={},
    )


def _extend_description(arm: Arm, idea: str, source: str) -> Arm:
    if source not in arm.source:
        arm = replace(arm, source=f"{arm.source}; {source}")
    return replace(arm, idea=f"{arm.idea}; {idea}")


def _lower_temperature(arm: Arm) -> Arm:
    """What hard negatives do beyond sharpening: uniform weights at τ/(1 + β)."""
    options = dict(arm.weighting).get("hard-negatives")
    if options is None:
        raise StudyError(
            "the control -temperature replaces hard negatives, and this arm has none"
        )
    kept = [scheme for scheme in arm.weighting if scheme[0] != "hard-negatives"]
    original = {k: v for k, v in arm.original.items() if v != "mean"}
    return replace(
        arm,
        idea=f"control: {arm.idea}; a lower temperature in its place",
        weighting=tuple(kept),
        tau_plus=0.0,
        temperature_factor=arm.temperature_factor / (1 + options["beta"]),
        original=original,
    )


def _permute_weights(arm: Arm) -> Arm:
    """Negative weights of the same spread without their meaning.

    Hard negatives' weights are permuted within each row, clinical risk over patients.
    """
    hard, risk = (name in arm.schemes for name in ("hard-negatives", "clinical-risk"))
    if not hard and not risk:
        raise StudyError(
            "the control -shuffled permutes the weights of negatives, "
            "and in this arm they are all equal"
        )
    return replace(
        arm,
        idea=f"control: {arm.idea}; weights permuted",
        weighting=arm.weighting + ((("shuffled", {}),) if hard else ()),
        permuted_risk=risk,
    )


CONTROLS = {"temperature": _lower_temperature, "shuffled": _permute_weights}
"""Suffix → function that makes the control of an arm."""


def arm_names() -> list[str]:
    """Every arm of the study, without controls."""
    return [*ARMS, *(name for name in COMPOSED if name not in ARMS)]


def factor_table(names: Iterable[str] | None = None) -> pd.DataFrame:
    """Factors as booleans, one row an arm: the design of the experiment.

    Of `simclr`, `rocl`, and the arms that differ from them in these factors alone.
    """
    plain = [_without_factors(ARMS[name]) for name in ("simclr", "rocl")]
    rows = {}
    for name in names or arm_names():
        arm = get_arm(name)
        if _without_factors(arm) not in plain:
            continue
        row = {"adversary": arm.adversary is not None, "debiased": arm.tau_plus > 0}
        for scheme in WEIGHTINGS.names():
            row[scheme.replace("-", "_")] = scheme in arm.schemes
        rows[name] = row
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("arm")


def _without_factors(arm: Arm) -> dict:
    factors = ("weighting", "tau_plus", "original", "original_attack")
    return {key: v for key, v in arm.parameters().items() if key not in factors}


def bases(names: Iterable[str] | None = None) -> dict[str, str]:
    """Arm → the arm that it is compared with, where there is one."""
    arms = {name: get_arm(name) for name in names or arm_names()}
    return {name: arm.base for name, arm in arms.items() if arm.base is not None}


def control_pairs(names: Iterable[str]) -> list[tuple[str, str]]:
    """Every arm among `names` with each of its controls that is there."""
    names = list(names)
    pairs = [(name, f"{name}-{control}") for name in names for control in CONTROLS]
    return [pair for pair in pairs if pair[1] in names]


def describe_arm(name: str) -> str:
    """The arm's factors in one line: losses and their views, attack, weighting."""
    factors = get_arm(name).parameters()
    losses = [_describe(**loss) for loss in factors.pop("losses")]
    parts = [" + ".join(losses) or "no loss"]
    if "adversary" in factors:
        attack = {"loss": "contrast"} | factors.pop("adversary")
        parts.append("attack " + _describe(attack.pop("loss"), **attack))
    for scheme, options in factors.pop("weighting", []):
        parts.append(_describe(scheme, **options))
    for field in ("original", "original_attack"):
        factors.pop(field, None)
    parts += [f"{field} {value}" for field, value in factors.items()]
    return "; ".join(parts)


def _describe(name: str, views: str = "", **options: object) -> str:
    """As in ``contrast(1 2) weight=0.5``."""
    shown = [f"{name}({views})" if views else name]
    for key, value in options.items():
        shown.append(
            f"{key}={value:.3g}" if isinstance(value, float) else f"{key}={value}"
        )
    return " ".join(shown)
