"""The arms of the study: rows of factors, not classes.

An arm is views × adversary × losses × weights. ``ARMS`` has one row for each base; factors and controls are
suffixes of its name: ``rocl-ip-hn`` is the row ``rocl`` with inferior positives and hard negatives,
``rocl-hn-shuffled`` the control of ``rocl-hn``.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Literal

import pandas as pd

from ecgstudy.errors import StudyError
from ecgstudy.weighting import SCHEMES

Group = Literal["reference", "standard", "adaptive", "adversarial", "adversarial adaptive", "with labels"]
Schemes = tuple[tuple[str, dict], ...]

BETA, TAU_PLUS, ALPHA = 1.0, 0.1, 0.2
"""As published: HCL and A-InfoNCE's HN (β, τ⁺), A-InfoNCE's IP (α)."""


@dataclass(frozen=True)
class Loss:
    """One summand of an arm's loss: a name in `ecgstudy.losses.LOSSES` and the views that it takes.

    `views` are ``1`` and ``2`` (random views of a record), ``0`` (a crop, unaltered) and ``h`` (its fast
    part); a star marks the attacked view. `weight` moves to `last` during training, if that is given.
    `plain`: uniform weights, whatever the arm's schemes.
    """

    name: str
    views: str
    weight: float = 1.0
    last: float | None = None
    plain: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The views, one by one."""
        return tuple(self.views.split())


@dataclass(frozen=True)
class Adversary:
    """The inner attack: starred `views` are perturbed together to raise `loss`, the others are held.

    `loss` is a name in `ecgstudy.losses.ADVERSARIES`; `steps` and `step` (in ε) None are the study's.
    """

    views: str
    loss: str = "contrast"
    steps: int | None = None
    step: float | None = None
    random_start: bool = True
    both_sides: bool = False
    """Gradient also through the candidates of the contrastive loss."""
    train_mode: bool = False


@dataclass(frozen=True)
class Arm:
    """One way to obtain an encoder.

    Attributes
    ----------
    group, idea, source
        For tables: the source says the paper, what was read of it, and what is a reconstruction.
    losses, adversary
        What is minimised, and the inner attack that makes the starred views.
    weighting, tau_plus, denominator
        Schemes in order on top of uniform weights, and debiasing, of every contrastive loss not `plain`.
    temperature_factor
        Of the study's τ.
    detach
        Gradient of the contrastive loss through the anchors only; None: where there is an adversary.
    similarity, projector
        Of the contrastive loss; without a projector it acts on the features.
    base
        The arm that this one is compared with.
    needs
        The arm whose encoder of the same data and seed serves as teacher, or as source of attacks.
    dual_norm
        Separate batch norm for attacked views; None: where contrastive losses have an adversary.
    own_head
        Evaluated with the head that it was trained with; otherwise with a new linear head.
    features
        scikit-learn model on engineered features (`ecgstudy.features`), instead of an encoder.
    epochs, momentum, fading_views
        Factor of the study's epochs; of the second view's moving-average encoder (0: none); whether
        augmentations fade to nothing during training.
    shuffled
        Control: clinical risk is permuted over patients.
    original
        Fields that differ in the source, used with ``training.loss: original``.
    sets_headline
        Whether the headline ε is chosen on this arm's validation scores.
    """

    group: Group
    idea: str
    source: str
    losses: tuple[Loss, ...] = ()
    adversary: Adversary | None = None
    weighting: Schemes = ()
    tau_plus: float = 0.0
    denominator: str = "own"
    temperature_factor: float = 1.0
    detach: bool | None = None
    similarity: str = "cosine"
    projector: bool = True
    base: str | None = None
    needs: str | None = None
    dual_norm: bool | None = None
    own_head: bool = False
    features: str | None = None
    epochs: float = 1.0
    momentum: float = 0.0
    fading_views: bool = False
    shuffled: bool = False
    original: dict = field(default_factory=dict)
    sets_headline: bool = False

    @property
    def schemes(self) -> tuple[str, ...]:
        """Names of the weighting schemes."""
        return tuple(name for name, _ in self.weighting)

    @property
    def contrasts(self) -> tuple[Loss, ...]:
        """The losses that the weighting acts on."""
        return tuple(loss for loss in self.losses if loss.name == "contrast" and not loss.plain)

    @property
    def dual(self) -> bool:
        """Whether attacked views have their own batch norm."""
        return bool(self.adversary and self.contrasts) if self.dual_norm is None else self.dual_norm

    def __post_init__(self) -> None:
        attacked = self.adversary.views.split() if self.adversary else []
        lost = [v for loss in self.losses for v in loss.names if v.endswith("*") and v not in attacked]
        if lost:
            raise StudyError(f"a loss takes the attacked view {lost[0]!r}, and no adversary makes it")
        if (self.weighting or self.tau_plus) and not self.contrasts:
            what = list(self.schemes) or "debiasing"
            raise StudyError(f"{what} need a contrastive loss with pairwise negatives, and this arm has none")
        mixed = any(len({v.endswith("*") for v in loss.names}) == 2 for loss in self.contrasts)
        if "inferior-positives" in self.schemes and not mixed:
            raise StudyError(
                "inferior positives weigh clean-adversarial pairs, and this arm has no loss with both: "
                "leave 'inferior-positives' out"
            )
        if "leaked-local" in self.schemes and not any(loss.name == "ce" for loss in self.losses):
            raise StudyError(
                "leaked-local selects by the model's predictions, and this arm learns none: add a 'ce' loss"
            )
        if self.tau_plus and self.denominator == "none":
            raise StudyError("debiasing needs the positive in the denominator; 'none' leaves it out")

    def pushing(self) -> bool:
        """Whether some scheme changes push weights."""
        return bool(set(self.schemes) & {"hard-negatives", "clinical-risk"})


IP: Schemes = (("inferior-positives", {"alpha": ALPHA}),)
HN: Schemes = (("hard-negatives", {"beta": BETA}),)
RISK: Schemes = (("clinical-risk", {}),)
LABELS: Schemes = (("labels", {}),)


def _contrast(views: str, weight: float = 1.0, **options: object) -> Loss:
    return Loss("contrast", views, weight, **options)


TWO = (_contrast("1 2"),)
THREE = (_contrast("1 2 1*"),)
# RoCL adds NT-Xent/256 to a loss of twice our scale (two positives are summed there, averaged here).
ROCL = {"losses": (*THREE, _contrast("2 1*", 1 / 512, plain=True)), "adversary": Adversary("1* 2")}
ON_LABELS = Adversary("1*", "labels")
CLAE = {"losses": (_contrast("1 2", 0.5), _contrast("1 1*", 0.5)),
        "adversary": Adversary("1* 2", steps=1, step=1.0, random_start=False, both_sides=True),
        "source": "Ho & Vasconcelos 2020; authors' code read. Eval mode in the attack, as in all arms"}  # fmt: skip
ALL, BOTH = {"denominator": "all"}, {"detach": False}

ARMS: dict[str, Arm] = {
    "random": Arm("reference", "untrained encoder", "control"),
    "supervised": Arm("reference", "cross-entropy on clean ECGs", "control", (Loss("ce", "1"),),
        own_head=True, sets_headline=True),
    "pgd-at": Arm("reference", "cross-entropy on attacked ECGs", "Madry et al. 2018", (Loss("ce", "1*"),), ON_LABELS,
        base="supervised", own_head=True),
    "trades": Arm("reference", "clean cross-entropy, and predictions that stay under attack",
        "Zhang et al. 2019, β = 6; authors' code read. Uniform start; label-wise Bernoulli KL for multi-label is ours",
        (Loss("ce", "1"), Loss("kl", "1 1*", 6.0)), Adversary("1* 1", "kl"), base="supervised", own_head=True),
    "mart": Arm("reference", "adversarial training that stresses ECGs misread when clean",
        "Wang et al. 2020, β = 6; authors' code read. Multi-label form is ours", (Loss("mart", "1 1*"),), ON_LABELS,
        base="supervised", own_head=True),
    "features-lr": Arm("reference", "logistic regression on engineered features", "control", features="lr",
        needs="supervised"),
    "features-tree": Arm("reference", "decision tree on engineered features", "control", features="tree",
        needs="supervised"),
    "features-forest": Arm("reference", "random forest on engineered features", "control", features="forest",
        needs="supervised"),
    "simclr": Arm("standard", "two views attract, all others repel equally", "Chen et al. 2020", TWO),
    "simclr-long": Arm("standard", "simclr with rocl's wall time", "control; 3 times the epochs, as measured at 3 steps",
        TWO, base="simclr", epochs=3.0),
    "supcon": Arm("with labels", "ECGs with common labels attract",
        "Khosla et al. 2020; authors' code read. Multi-label overlap is a reconstruction", TWO,
        weighting=LABELS, base="simclr", original=ALL),
    "dclw": Arm("adaptive", "positives leave the denominator, hard ones count more",
        "Yeh et al. 2022; another group's code read", TWO, weighting=(("hard-positive-logits", {"sigma": 0.5}),),
        denominator="none", base="simclr", original={"temperature_factor": 0.2}),
    "clef": Arm("adaptive", "patients of different clinical risk repel more",
        "CLEF, arXiv 2512.02180; authors' code read; mean-1 scaling and SCORE2 from age and sex are ours", TWO,
        weighting=RISK, base="simclr"),
    "clef-original": Arm("adaptive", "clef with its own scale of weights and its regression of similarity on risk",
        "CLEF, arXiv 2512.02180; authors' code read; SCORE2 from age and sex is ours. τ = 0.07 at the study's 0.5",
        (_contrast("1 2", 0.5), Loss("risk-similarity", "1 2", 0.5)), weighting=(("clinical-risk", {"original": True}),),
        temperature_factor=0.14, projector=False, base="simclr"),
    "rocl": Arm("adversarial", "a label-free adversarial view is a third positive",
        "Kim et al. 2020 (RoCL); authors' code read", **ROCL, base="simclr", original=ALL),
    "rocl-long": Arm("adversarial", "rocl, 2.5 times as long", "control", **ROCL, base="rocl", epochs=2.5),
    "acl": Arm("adversarial", "two clean views attract, and two adversarial ones do",
        "Jiang et al. 2020 (ACL, dual stream); authors' code read", (_contrast("1 2", 0.5), _contrast("1* 2*", 0.5)),
        Adversary("1* 2*"), base="simclr", original=BOTH),
    "advcl": Arm("adversarial", "adversary, two views and the ECG's fast part attract; pseudo-labels",
        "Fan et al. 2021 (AdvCL); authors' code read. Fast part along time, pseudo-labels from simclr on the training "
        "folds and one adversary for both losses are ours", (_contrast("1 2 h 0*"), Loss("pseudo-labels", "0*", 0.028)),
        Adversary("0* 1 2 h"), base="simclr", needs="simclr", original=ALL | BOTH),
    "clae": Arm("adversarial", "a one-step adversary of the whole batch is a second positive", **CLAE, base="simclr",
        original=BOTH),
    "clae-supcon": Arm("with labels", "supcon with clae's adversary", **CLAE, weighting=LABELS, base="supcon", original=BOTH),
    "clae-hcl": Arm("adversarial adaptive", "hcl with clae's adversary", **CLAE, weighting=HN, tau_plus=TAU_PLUS, base="hcl",
        original=BOTH),
    "swaro": Arm("adversarial", "cluster codes agree between views and under attacks on permuted codes",
        "Wahed et al. 2022 (SwARo); abstract only, a reconstruction", (Loss("codes", "1 2 1* 2*"),),
        Adversary("1* 2* 1 2", "permuted-codes"), base="simclr", dual_norm=True),
    "claf": Arm("adversarial", "an adversary of a linear head that follows the features is a third positive",
        "Rahamim & Naeh 2022; abstract only, a reconstruction. The head sees labels, the features do not",
        (*THREE, Loss("head", "1 2")), ON_LABELS, base="simclr"),
    "dynacl": Arm("adversarial", "acl with fading augmentations, growing weight on attacks, a momentum encoder",
        "Luo et al. 2023 (DynACL); authors' code read",
        (_contrast("1 2", 1 / 2, last=1 / 6), _contrast("1* 2*", 1 / 2, last=5 / 6)), Adversary("1* 2*"),
        base="acl", momentum=0.99, fading_views=True),
    "deacl": Arm("adversarial", "a student agrees with a clean simclr teacher, also under attack",
        "Zhang et al. 2022 (DeACL); authors' code read", (Loss("distil", "0"), Loss("agree", "0 0*", 2.0)),
        Adversary("0*", "teacher"), base="simclr", needs="simclr"),
    "adv-supcon": Arm("with labels", "supcon with label-free adversarial views",
        "after Li et al. 2023 (abstract) and RSupCon (code read); a reconstruction", THREE, Adversary("1* 2"),
        weighting=LABELS, base="supcon", original=ALL),
    "adv-supcon-labels": Arm("with labels", "supcon with adversaries of the supervised contrastive loss",
        "after RSupCon (Kim & Choi 2026; code read)", THREE, Adversary("1* 2", "labelled-contrast"), weighting=LABELS,
        base="adv-supcon", original=ALL),
    "adv-supcon-noise": Arm("with labels", "supcon with noisy views", "control", THREE, Adversary("1*", "noise"),
        weighting=LABELS, base="adv-supcon", original=ALL),
    "supcon-margin": Arm("with labels", "cross-entropy and a margin between embeddings of different labels",
        "Wang et al. 2024 (arXiv 2412.19747); abstract only, a reconstruction",
        (Loss("ce", "1"), Loss("margin", "1 2")), base="supervised", own_head=True),
    "anchor": Arm("with labels", "hard positives pull more; cross-entropy under attack",
        "ANCHOR (arXiv 2510.27599); summary only, a reconstruction", (_contrast("1 1*"), Loss("ce", "1*")), ON_LABELS,
        weighting=(*LABELS, ("hard-positives", {"gamma": 1.0})), base="pgd-at", original=ALL),
    "ascl": Arm("with labels", "only ECGs predicted alike attract or repel; adversarial training",
        "Bui et al. 2021 (ASCL); authors' code read. Multi-label selection is ours",
        (Loss("ce", "1*"), _contrast("1 1*"), Loss("kl", "1 1*", 2.0)), ON_LABELS,
        weighting=(*LABELS, ("leaked-local", {})), base="pgd-at", dual_norm=False, own_head=True,
        original=ALL | BOTH | {"similarity": "chebyshev", "temperature_factor": 0.4}),
}  # fmt: skip

COMPOSED = (
    "debiased", "hcl", "rocl-ip", "rocl-debiased", "rocl-hn", "rocl-ip-hn", "advcl-ip", "advcl-hn", "advcl-ip-hn",
    "acl-hn", "claf-ip-hn", "rocl-clef", "rocl-clef-ip-hn",
)  # fmt: skip
"""The study's arms that are a row of `ARMS` with factors."""

AINFONCE = "Yu et al. 2022 (A-InfoNCE); authors' code read"
FACTORS: dict[str, tuple[str, str, dict]] = {
    "ip": ("adversaries move to clean views more than the reverse", AINFONCE, {"weighting": IP}),
    "hn": ("close negatives repel more, debiased", AINFONCE, {"weighting": HN, "tau_plus": TAU_PLUS}),
    "debiased": ("expected same-class negatives are subtracted", "Chuang et al. 2020; authors' code read",
                 {"tau_plus": TAU_PLUS}),
    "clef": ("patients of different clinical risk repel more", "CLEF's weights; authors' code read", {"weighting": RISK}),
}  # fmt: skip
"""Suffix → idea, source, and the fields that it adds to a base: one more name for every row of `ARMS`."""

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
    elif stem and suffix in (*FACTORS, *CONTROLS):
        try:
            arm = (
                CONTROLS[suffix](get_arm(stem))
                if suffix in CONTROLS
                else _with_factor(get_arm(stem), stem, suffix)
            )
        except StudyError as error:
            raise (
                error if str(error).startswith("unknown arm") else StudyError(f"arm {name!r}: {error}")
            ) from None
    else:
        raise StudyError(
            f"unknown arm {name!r}; known: {', '.join(arm_names())}; factors as suffixes: {', '.join(FACTORS)}; "
            f"controls: {', '.join(CONTROLS)}"
        )
    if unknown := [used for used in arm.schemes if used not in SCHEMES]:
        raise StudyError(
            f"arm {name!r} uses the unknown weighting scheme {unknown[0]!r}; known: {', '.join(SCHEMES)}"
        )
    return arm


def _with_factor(arm: Arm, stem: str, suffix: str) -> Arm:
    idea, source, fields = FACTORS[suffix]
    factors = {
        key: getattr(arm, key) + value if key == "weighting" else value for key, value in fields.items()
    }
    group = "adversarial adaptive" if arm.adversary else "adaptive"
    combined = arm.source if source in arm.source else f"{arm.source}; {source}"
    base = arm.base if arm.weighting or arm.tau_plus else stem
    # A-InfoNCE's hard negatives divide by the mean positive and all negatives.
    original = arm.original | ({"denominator": "mean"} if suffix == "hn" and arm.adversary else {})
    return replace(
        arm, group=group, idea=f"{arm.idea}; {idea}", source=combined, base=base, original=original, **factors
    )


def _temperature(arm: Arm) -> Arm:
    """Uniform weights and τ/(1+β) throughout: what hard negatives do beyond sharpening (design, 6)."""
    beta = dict(arm.weighting).get("hard-negatives", {}).get("beta")
    if beta is None:
        raise StudyError("the control -temperature replaces hard negatives, and this arm has none")
    kept = tuple((name, options) for name, options in arm.weighting if name != "hard-negatives")
    factor = arm.temperature_factor / (1 + beta)
    return replace(arm, idea=f"control: {arm.idea}; a temperature in their place", weighting=kept, tau_plus=0.0,
                   temperature_factor=factor)  # fmt: skip


def _shuffled(arm: Arm) -> Arm:
    """Push weights of the same spread without their meaning."""
    if not arm.pushing():
        raise StudyError("the control -shuffled permutes push weights, and this arm's are all equal")
    risk_only = "hard-negatives" not in arm.schemes
    shuffle: Schemes = () if risk_only else (("shuffled", {}),)
    return replace(arm, idea=f"control: {arm.idea}; weights shuffled", weighting=arm.weighting + shuffle,
                   shuffled="clinical-risk" in arm.schemes)  # fmt: skip


CONTROLS: dict[str, Callable[[Arm], Arm]] = {"temperature": _temperature, "shuffled": _shuffled}


def arm_names() -> list[str]:
    """Every arm of the study, without controls."""
    return [*ARMS, *(name for name in COMPOSED if name not in ARMS)]


def arm_row(name: str) -> dict:
    """The arm's factors as plain JSON types: what `run.json` keeps of it."""
    return json.loads(json.dumps(asdict(get_arm(name))))  # lists, where the dataclass has tuples


def factor_table(names: Iterable[str] | None = None) -> pd.DataFrame:
    """Factors of the contrastive arms as booleans, one row an arm: the design of the experiment."""
    found = {name: arm for name in names or arm_names() if (arm := get_arm(name)).contrasts}
    rows = {
        name: {
            "adversary": arm.adversary is not None,
            "debiased": arm.tau_plus > 0,
            **{used.replace("-", "_"): used in arm.schemes for used in SCHEMES},
        }
        for name, arm in found.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("arm")


def bases(names: Iterable[str] | None = None) -> dict[str, str]:
    """Adaptive arm → the standard arm it is compared with."""
    return {name: arm.base for name in names or arm_names() if (arm := get_arm(name)).base is not None}
