"""The arms of the study: rows of factors, not classes."""

import json
from dataclasses import asdict, dataclass
from typing import Literal

import pandas as pd

from ecgstudy.errors import StudyError
from ecgstudy.weighting import SCHEMES

Group = Literal["reference", "standard", "adaptive", "adversarial", "adversarial adaptive"]
Schemes = tuple[tuple[str, dict], ...]

BETA, TAU_PLUS, ALPHA = 1.0, 0.1, 0.2
"""As published: HCL and A-InfoNCE's HN (β, τ⁺), A-InfoNCE's IP (α)."""


@dataclass(frozen=True)
class Arm:
    """One way to obtain an encoder.

    Attributes
    ----------
    group
        For tables and figures.
    idea
        One line.
    source
        Paper, and what was read of it.
    objective
        What is minimised: nothing, the labels' cross-entropy, or the contrastive loss.
    adversary
        Which views the inner attack perturbs in training: none, ``"record"`` (supervised), or
        ``"first view"`` (an adversarial third view beside the two clean ones).
    weighting
        Weighting schemes with options, applied in order to uniform weights.
    tau_plus
        Debiasing of the contrastive loss.
    side
        Weight of RoCL's side term NT-Xent(adversary, second view).
    base
        The arm that this one is compared with.
    sets_headline
        Whether the headline ε is chosen on this arm's validation scores.
    """

    group: Group
    idea: str
    source: str
    objective: Literal["none", "labels", "contrast"] = "contrast"
    adversary: Literal["none", "record", "first view"] = "none"
    weighting: Schemes = ()
    tau_plus: float = 0.0
    side: float = 0.0
    base: str | None = None
    sets_headline: bool = False

    def __post_init__(self) -> None:
        names = [name for name, _ in self.weighting]
        if "inferior-positives" in names and self.adversary != "first view":
            raise StudyError(
                "inferior positives weigh clean-adversarial pairs, and this arm has none: "
                "give it adversary='first view' or leave 'inferior-positives' out"
            )
        if self.objective != "contrast" and names:
            raise StudyError(
                f"weighting schemes {names} need the contrastive objective, not {self.objective!r}"
            )

    @property
    def uses_risk(self) -> bool:
        """Whether training needs the patients' clinical risk."""
        return any(name == "clinical-risk" for name, _ in self.weighting)


IP: Schemes = (("inferior-positives", {"alpha": ALPHA}),)
HN: Schemes = (("hard-negatives", {"beta": BETA}),)
RISK: Schemes = (("clinical-risk", {}),)
AINFONCE = "Yu et al. 2022 (A-InfoNCE); authors' code read"
# RoCL adds NT-Xent/256 to a loss of twice our scale (two positives are summed there, averaged here).
ROCL = {"adversary": "first view", "side": 1 / 512}

ARMS: dict[str, Arm] = {
    "random": Arm("reference", "untrained encoder", "control", objective="none"),
    "supervised": Arm(
        "reference", "cross-entropy on clean ECGs", "control", objective="labels", sets_headline=True
    ),
    "pgd-at": Arm(
        "reference", "cross-entropy on attacked ECGs", "Madry et al. 2018", objective="labels",
        adversary="record", base="supervised",
    ),
    "simclr": Arm("standard", "two views attract, all others repel equally", "Chen et al. 2020"),
    "hcl": Arm(
        "adaptive", "close negatives repel more, debiased", "Robinson et al. 2021; authors' code read",
        weighting=HN, tau_plus=TAU_PLUS, base="simclr",
    ),
    "clef": Arm(
        "adaptive", "patients of different clinical risk repel more",
        "CLEF, arXiv 2512.02180; authors' code read; mean-1 scaling and SCORE2 from age and sex are ours",
        weighting=RISK, base="simclr",
    ),
    "rocl": Arm(
        "adversarial", "a label-free adversarial view is a third positive",
        "Kim et al. 2020 (RoCL); authors' code read", base="simclr", **ROCL,
    ),
    "rocl-ip": Arm(
        "adversarial adaptive", "adversaries move to clean views more than the reverse", AINFONCE,
        weighting=IP, base="rocl", **ROCL,
    ),
    "rocl-debiased": Arm(
        "adversarial adaptive", "expected same-class negatives are subtracted",
        "Chuang et al. 2020; authors' code read", tau_plus=TAU_PLUS, base="rocl", **ROCL,
    ),
    "rocl-hn": Arm(
        "adversarial adaptive", "close negatives, adversaries among them, repel more; debiased", AINFONCE,
        weighting=HN, tau_plus=TAU_PLUS, base="rocl", **ROCL,
    ),
    "rocl-ip-hn": Arm(
        "adversarial adaptive", "inferior positives and hard negatives", AINFONCE,
        weighting=IP + HN, tau_plus=TAU_PLUS, base="rocl", **ROCL,
    ),
    "rocl-clef": Arm(
        "adversarial adaptive", "RoCL with clinical push weights", "ours, from RoCL and CLEF",
        weighting=RISK, base="rocl", **ROCL,
    ),
}  # fmt: skip


def get_arm(name: str) -> Arm:
    """The arm called `name`.

    Raises
    ------
    StudyError
        When there is none, naming those there are.
    """
    if name not in ARMS:
        raise StudyError(f"unknown arm {name!r}; known: {', '.join(ARMS)}")
    arm = ARMS[name]
    unknown = [used for used, _ in arm.weighting if used not in SCHEMES]
    if unknown:
        raise StudyError(
            f"arm {name!r} uses the unknown weighting scheme {unknown[0]!r}; known: {', '.join(SCHEMES)}"
        )
    return arm


def arm_row(name: str) -> dict:
    """The arm's factors as plain JSON types: what `run.json` keeps of it."""
    return json.loads(json.dumps(asdict(get_arm(name))))  # lists, where the dataclass has tuples


def factor_table(names: list[str] | None = None) -> pd.DataFrame:
    """Factors of the contrastive arms as booleans, one row an arm: the design of the experiment."""
    rows = {
        name: {
            "adversary": arm.adversary != "none",
            "debiased": arm.tau_plus > 0,
            **{used.replace("-", "_"): any(s == used for s, _ in arm.weighting) for used in SCHEMES},
        }
        for name, arm in ((name, get_arm(name)) for name in names or ARMS)
        if arm.objective == "contrast"
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("arm")


def bases(names: list[str] | None = None) -> dict[str, str]:
    """Adaptive arm → the standard arm it is compared with."""
    return {name: arm.base for name in names or ARMS if (arm := get_arm(name)).base is not None}
