"""Arms by name: a row of `ARMS`, with factors and a control as suffixes.

``rocl-ip-hn`` is the row ``rocl`` with inferior positives and hard negatives, ``rocl-hn-shuffled`` the
control of ``rocl-hn``. Every combination that makes sense has a name, whether the study lists it or not.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace

import pandas as pd

from ecgstudy.errors import StudyError
from ecgstudy.pretraining.arms import (
    HN,
    IP,
    RISK,
    TAU_PLUS,
    Adversary,
    Arm,
    Loss,
    Schemes,
)
from ecgstudy.registry import ARMS, WEIGHTINGS

COMPOSED = (
    "debiased", "hcl", "rocl-ip", "rocl-debiased", "rocl-hn", "rocl-ip-hn", "advcl-ip", "advcl-hn",
    "advcl-ip-hn", "acl-hn", "claf-ip-hn", "rocl-clef", "rocl-clef-ip-hn",
)  # fmt: skip
"""The study's arms that are a row of `ARMS` with factors."""

AINFONCE = "Yu et al. 2022 (A-InfoNCE); authors' code read"
FACTORS: dict[str, tuple[str, str, dict]] = {
    "ip": ("adversaries move to clean views more than the reverse", AINFONCE, {"weighting": IP}),
    "hn": ("close negatives repel more, debiased", AINFONCE, {"weighting": HN, "tau_plus": TAU_PLUS}),
    "debiased": ("expected same-class negatives are subtracted", "Chuang et al. 2020; authors' code read",
                 {"tau_plus": TAU_PLUS}),
    "clef": ("patients of different clinical risk repel more", "CLEF's weights; authors' code read",
             {"weighting": RISK}),
}  # fmt: skip
"""Suffix → idea, source, and the fields that it adds to a base: one more name for every row of `ARMS`."""

SINGLE_STEP: dict[str, tuple[str, str, dict]] = {
    "rsfgsm": ("one inner step of 1.25 ε from a random start", "Wong et al. 2020 (RS-FGSM)",
               {"steps": 1, "step": 1.25}),
    "nfgsm": ("one inner step of ε from noise of 2 ε, not clipped", "de Jorge et al. 2022 (N-FGSM)",
              {"steps": 1, "step": 1.0, "random_start": 2.0}),
}  # fmt: skip
"""Suffix → idea, source, and what it changes in the inner attack: cheaper, and compared with the base."""

ALIASES = {"debiased": "simclr-debiased", "hcl": "simclr-hn"}


def get_arm(name: str) -> Arm:
    """The arm called `name`: a row of `ARMS`, or one with factors and a control as suffixes.

    Raises
    ------
    StudyError
        When there is none, naming those there are; or when its factors do not go together, saying why.
    """
    stem, _, suffix = name.rpartition("-")
    if name in ARMS:
        arm = ARMS[name]
    elif name in ALIASES:
        arm = get_arm(ALIASES[name])
    elif stem and suffix in (*FACTORS, *SINGLE_STEP, *CONTROLS):
        try:
            arm = _with_suffix(get_arm(stem), stem, suffix)
        except StudyError as error:
            raise (
                error
                if str(error).startswith("unknown arm")
                else StudyError(f"arm {name!r}: {error}")
            ) from None
    else:
        raise StudyError(
            f"unknown arm {name!r}; known: {', '.join(arm_names())}; factors: {', '.join(FACTORS)}; "
            f"single-step attacks: {', '.join(SINGLE_STEP)}; controls: {', '.join(CONTROLS)}"
        )
    if unknown := [used for used in arm.schemes if used not in WEIGHTINGS.names()]:
        raise StudyError(
            f"arm {name!r} uses the unknown weighting scheme {unknown[0]!r}; known: {', '.join(WEIGHTINGS.names())}"
        )
    return arm


ARMS.derive = get_arm


def _with_suffix(arm: Arm, stem: str, suffix: str) -> Arm:
    if suffix in CONTROLS:
        return CONTROLS[suffix](arm)
    return (_in_one_step if suffix in SINGLE_STEP else _with_factor)(arm, stem, suffix)


def _in_one_step(arm: Arm, stem: str, suffix: str) -> Arm:
    if arm.adversary is None or arm.adversary.loss == "noise":
        raise StudyError(f"-{suffix} shortens an inner attack, and {stem!r} has none")
    idea, source, fields = SINGLE_STEP[suffix]
    original = {key: value for key, value in arm.original.items() if key != "adversary"}
    return replace(
        arm, idea=f"{arm.idea}; {idea}", source=f"{arm.source}; {source}", base=stem, original=original,
        adversary=replace(arm.adversary, **fields),
    )  # fmt: skip


def _with_factor(arm: Arm, stem: str, suffix: str) -> Arm:
    idea, source, fields = FACTORS[suffix]
    if any(used in arm.weighting for used in fields.get("weighting", ())) or (
        suffix == "debiased" and arm.tau_plus
    ):
        raise StudyError(f"the factor -{suffix} is given twice")
    base = stem
    while base not in ARMS:
        base = ALIASES.get(base, base).rpartition("-")[0]
    original = dict(arm.original)
    if (
        suffix == "hn" and arm.adversary
    ):  # A-InfoNCE's denominator: the mean positive and all negatives
        original["denominator"] = "mean"
    if suffix == "ip":  # as candidates that take a gradient would undo the asymmetry
        original.pop("detach_candidates", None)
    factors = {
        key: getattr(arm, key) + new if key == "weighting" else new
        for key, new in fields.items()
    }
    return replace(
        arm, group="adversarial adaptive" if arm.adversary else "adaptive", idea=f"{arm.idea}; {idea}",
        source=arm.source if source in arm.source else f"{arm.source}; {source}", base=base,
        original=original, **factors,
    )  # fmt: skip


def _temperature(arm: Arm) -> Arm:
    """Uniform weights and τ/(1+β) throughout: what hard negatives do beyond sharpening (design, 6)."""
    beta = dict(arm.weighting).get("hard-negatives", {}).get("beta")
    if beta is None:
        raise StudyError(
            "the control -temperature replaces hard negatives, and this arm has none"
        )
    kept = tuple(
        (name, options) for name, options in arm.weighting if name != "hard-negatives"
    )
    original = {key: value for key, value in arm.original.items() if value != "mean"}
    return replace(
        arm, idea=f"control: {arm.idea}; a temperature in their place", weighting=kept, tau_plus=0.0,
        temperature_factor=arm.temperature_factor / (1 + beta), original=original,
    )  # fmt: skip


def _shuffled(arm: Arm) -> Arm:
    """Push weights of the same spread without their meaning: permuted within rows, or risk over patients."""
    if not set(arm.schemes) & {"hard-negatives", "clinical-risk"}:
        raise StudyError(
            "the control -shuffled permutes push weights, and this arm's are all equal"
        )
    shuffle: Schemes = (("shuffled", {}),) if "hard-negatives" in arm.schemes else ()
    return replace(
        arm, idea=f"control: {arm.idea}; weights shuffled", weighting=arm.weighting + shuffle,
        shuffled="clinical-risk" in arm.schemes,
    )  # fmt: skip


CONTROLS: dict[str, Callable[[Arm], Arm]] = {
    "temperature": _temperature,
    "shuffled": _shuffled,
}


def arm_names() -> list[str]:
    """Every arm of the study, without controls."""
    return [*ARMS, *(name for name in COMPOSED if name not in ARMS)]


def arm_row(name: str) -> dict:
    """The arm's factors as plain JSON types: what `run.json` keeps of it."""
    return json.loads(
        json.dumps(asdict(get_arm(name)))
    )  # lists, where the dataclass has tuples


def factor_table(names: Iterable[str] | None = None) -> pd.DataFrame:
    """Factors as booleans, one row an arm: the design of the experiment.

    Of `simclr`, `rocl` and the arms that differ from them in these factors alone; others differ in more.
    """
    plain = {
        key: getattr(ARMS["simclr"], key)
        for key in ("options", "epochs", "temperature_factor", "shuffled")
    }
    shapes = [(ARMS[name].losses, ARMS[name].adversary) for name in ("simclr", "rocl")]
    found = {
        name: arm
        for name, arm in ((name, get_arm(name)) for name in names or arm_names())
        if (arm.losses, arm.adversary) in shapes
        and all(getattr(arm, k) == v for k, v in plain.items())
    }
    rows = {
        name: {
            "adversary": arm.adversary is not None,
            "debiased": arm.tau_plus > 0,
            **{
                used.replace("-", "_"): used in arm.schemes
                for used in WEIGHTINGS.names()
            },
        }
        for name, arm in found.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("arm")


def bases(names: Iterable[str] | None = None) -> dict[str, str]:
    """Adaptive arm → the standard arm it is compared with."""
    return {
        name: arm.base
        for name in names or arm_names()
        if (arm := get_arm(name)).base is not None
    }


def control_pairs(names: Iterable[str]) -> list[tuple[str, str]]:
    """Every weighted arm among `names` with each of its controls there."""
    there = list(names)
    pairs = ((name, f"{name}-{control}") for name in there for control in CONTROLS)
    return [pair for pair in pairs if pair[1] in there]


def describe_arm(name: str) -> str:
    """The arm's factors in one line: losses with their views, the attack, weights, and what else differs."""
    arm = get_arm(name)
    losses = [f"{_shown_weight(loss)}{loss.name}({loss.views})" for loss in arm.losses]
    parts = [
        " + ".join(losses) or (f"features, {arm.features}" if arm.features else "none")
    ]
    if arm.adversary:
        parts.append(
            f"attack {arm.adversary.loss}({arm.adversary.views}){_shown_budget(arm.adversary)}"
        )
    parts += [
        " ".join([used, *(f"{key}={value}" for key, value in options.items())])
        for used, options in arm.weighting
    ]
    also = {
        "τ⁺": arm.tau_plus,
        "momentum": arm.momentum,
        "fading views": arm.fading_views,
        **arm.options,
    }
    also |= {"epochs ×": arm.epochs - 1 and arm.epochs, "needs": arm.needs}
    parts += [
        key if value is True else f"{key} {value}"
        for key, value in also.items()
        if value
    ]
    return "; ".join(parts)


def _shown_budget(adversary: Adversary) -> str:
    wide = float(adversary.random_start)
    own = {"steps": adversary.steps, "step": adversary.step and f"{adversary.step:g} ε"}
    own |= {"start": f"{wide:g} ε" if wide > 1 else None}
    return "".join(f" {key} {value}" for key, value in own.items() if value)


def _shown_weight(loss: Loss) -> str:
    weight = (
        f"{loss.weight:.3g}"
        if loss.last is None
        else f"{loss.weight:.3g}→{loss.last:.3g}"
    )
    return "" if weight == "1" else f"{weight} "
