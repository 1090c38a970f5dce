"""The arms of the study: rows of factors, not classes.

An arm is views × adversary × losses × weights. ``ARMS`` has a row for each base; further factors and controls
are suffixes of its name (`ecgstudy.pretraining.suffixes`): ``rocl-ip-hn`` is the row ``rocl`` with two factors more.
"""

from dataclasses import dataclass, field
from typing import Literal

from ecgstudy.errors import StudyError
from ecgstudy.registry import ARMS

Group = Literal[
    "reference",
    "standard",
    "adaptive",
    "adversarial",
    "adversarial adaptive",
    "with labels",
]
Schemes = tuple[tuple[str, dict], ...]

WHOLE_BATCH = ("hard-positive-logits",)
"""Schemes that compare all anchors of a batch with each other, so that these cannot come in parts."""
BETA, TAU_PLUS, ALPHA = 1.0, 0.1, 0.2
"""As published: HCL and A-InfoNCE's HN (β, τ⁺), A-InfoNCE's IP (α)."""


@dataclass(frozen=True)
class Loss:
    """One summand of an arm's loss: a name in `ecgstudy.pretraining.losses.LOSSES` and the views that it takes.

    Views are ``1`` and ``2`` (random), ``0`` (a crop, unaltered) and ``h`` (its fast part); a star marks
    the attacked view. `weight` moves to `last` during training, if that is given. `plain`: uniform weights.
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

    `loss` is a name in `ecgstudy.pretraining.losses.ADVERSARIES`; `steps` and `step` (in ε) None are the study's;
    `random_start`: from uniform noise of ε, or of as many ε as it says; from more than one, nothing is
    clipped to ε (N-FGSM);
    `both_sides`: gradient also through the candidates of the contrastive loss.
    """

    views: str
    loss: str = "contrast"
    steps: int | None = None
    step: float | None = None
    random_start: bool | float = True
    both_sides: bool = False
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
    weighting, tau_plus, temperature_factor, options
        Of every contrastive loss not `plain`: schemes in order on top of uniform weights, debiasing, factor
        of the study's τ, and further arguments of `weighted_contrastive_loss`. Candidates are detached where
        there is an adversary, if the options do not say otherwise.
    original
        Options (and ``temperature_factor``) that differ in the source, for ``training.loss: original``, and
        under ``adversary`` those of its attack, for ``training.attack: original``.
    base
        The arm that this one is compared with.
    needs
        The arm whose encoder, of the same data and seed, is its teacher or the source of attacks on it.
    projector, dual_norm, momentum
        Whether contrast acts on a projection; whether attacked views have their own batch norm (None: where
        contrast meets an adversary); rate of a moving-average encoder of the second view (0: none).
    own_head
        Evaluated with the head that it was trained with; otherwise with a new linear head.
    features
        scikit-learn model on engineered features (`ecgstudy.datasets.features`), instead of an encoder.
    epochs, fading_views, shuffled
        Factor of the study's epochs; augmentations fade during training; clinical risk is permuted.
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
    temperature_factor: float = 1.0
    options: dict = field(default_factory=dict)
    original: dict = field(default_factory=dict)
    base: str | None = None
    needs: str | None = None
    projector: bool = True
    dual_norm: bool | None = None
    momentum: float = 0.0
    own_head: bool = False
    features: str | None = None
    epochs: float = 1.0
    fading_views: bool = False
    shuffled: bool = False
    sets_headline: bool = False

    @property
    def schemes(self) -> tuple[str, ...]:
        """Names of the weighting schemes."""
        return tuple(name for name, _ in self.weighting)

    @property
    def whole_batch(self) -> tuple[str, ...]:
        """Schemes of the arm that need all anchors of a batch at once."""
        return tuple(name for name in self.schemes if name in WHOLE_BATCH)

    @property
    def contrasts(self) -> tuple[Loss, ...]:
        """The losses that the weighting acts on."""
        return tuple(
            loss for loss in self.losses if loss.name == "contrast" and not loss.plain
        )

    @property
    def dual(self) -> bool:
        """Whether attacked views have their own batch norm."""
        return (
            bool(self.adversary and self.contrasts)
            if self.dual_norm is None
            else self.dual_norm
        )

    def __post_init__(self) -> None:
        made = self.adversary.views.split() if self.adversary else []
        lost = [
            v
            for loss in self.losses
            for v in loss.names
            if v.endswith("*") and v not in made
        ]
        if lost:
            raise StudyError(
                f"a loss takes the attacked view {lost[0]!r}, and no adversary makes it"
            )
        if (self.weighting or self.tau_plus) and not self.contrasts:
            what = ", ".join(self.schemes) or "debiasing"
            raise StudyError(
                f"{what} needs a contrastive loss with pairwise negatives, and this arm has none"
            )
        mixed = any(
            len({v.endswith("*") for v in loss.names}) == 2 for loss in self.contrasts
        )
        if "inferior-positives" in self.schemes and not mixed:
            raise StudyError(
                "inferior positives weigh clean-adversarial pairs, and no loss of this arm has any"
            )
        if "leaked-local" in self.schemes and not any(
            loss.name == "ce" for loss in self.losses
        ):
            raise StudyError(
                "leaked-local selects by predictions, and this arm learns none: add a 'ce' loss"
            )
        if self.tau_plus and self.options.get("denominator") == "none":
            raise StudyError(
                "debiasing needs the positive in the denominator; 'none' leaves it out"
            )


IP: Schemes = (("inferior-positives", {"alpha": ALPHA}),)
HN: Schemes = (("hard-negatives", {"beta": BETA}),)
RISK: Schemes = (("clinical-risk", {}),)
LABELS: Schemes = (("labels", {}),)


def _contrast(views: str, weight: float = 1.0, **fields: object) -> Loss:
    return Loss("contrast", views, weight, **fields)


def _steps(steps: int, step: float, **fields: bool) -> dict:
    """An attack's own budget, for ``training.attack: original``."""
    return {"adversary": {"steps": steps, "step": step, **fields}}


READ = "authors' code read"
TWO, THREE = (_contrast("1 2"),), (_contrast("1 2 1*"),)
CE, CE_ATTACKED, ON_LABELS = (
    Loss("ce", "1"),
    Loss("ce", "1*"),
    Adversary("1*", "labels"),
)
ALL, BOTH = {"denominator": "all"}, {"detach_candidates": False}
# RoCL adds NT-Xent/256 to a loss of twice our scale (two positives are sum_over_processes there, averaged here).
ROCL = {
    "losses": (*THREE, _contrast("2 1*", 1 / 512, plain=True)),
    "adversary": Adversary("1* 2"),
    "original": ALL | _steps(7, 0.223),
}
CLAE = {"source": f"Ho & Vasconcelos 2020; {READ}. Attack in eval mode, as in all arms",
        "losses": (_contrast("1 2", 0.5), _contrast("1 1*", 0.5)),
        "adversary": Adversary("1* 2", steps=1, step=1.0, random_start=False, both_sides=True),
        "original": BOTH | {"adversary": {"train_mode": True}}}  # fmt: skip

ARMS.update({
    "random": Arm("reference", "untrained encoder", "control"),
    "supervised": Arm("reference", "cross-entropy on clean ECGs", "control", (CE,), own_head=True,
        sets_headline=True),
    "pgd-at": Arm("reference", "cross-entropy on attacked ECGs", "Madry et al. 2018", (CE_ATTACKED,),
        ON_LABELS, base="supervised", own_head=True),
    "trades": Arm("reference", "clean cross-entropy, and predictions that stay under attack",
        f"Zhang et al. 2019, β = 6; {READ}. Uniform start and label-wise KL of multi-label ECGs are ours",
        (CE, Loss("kl", "1 1*", 6.0)), Adversary("1* 1", "kl"), base="supervised", own_head=True,
        original=_steps(10, 0.226)),
    "mart": Arm("reference", "adversarial training that stresses ECGs misread when clean",
        f"Wang et al. 2020, β = 6; {READ}. The multi-label form is ours", (Loss("mart", "1 1*"),), ON_LABELS,
        base="supervised", own_head=True, original=_steps(10, 0.226)),
    **{f"features-{kind}": Arm("reference", f"{model} on engineered features", "control", features=kind,
        needs="supervised") for kind, model in
        {"lr": "logistic regression", "tree": "decision tree", "forest": "random forest"}.items()},
    "simclr": Arm("standard", "two views attract, all others repel equally", "Chen et al. 2020", TWO),
    "simclr-long": Arm("standard", "simclr with rocl's wall time", "control; a third of the time a step",
        TWO, base="simclr", epochs=3.0),
    "supcon": Arm("with labels", "ECGs with common labels attract",
        f"Khosla et al. 2020; {READ}. Overlap of several labels is a reconstruction", TWO, weighting=LABELS,
        base="simclr", original=ALL),
    "dclw": Arm("adaptive", "positives leave the denominator, hard ones count more",
        "Yeh et al. 2022; another group's code read", TWO,
        weighting=(("hard-positive-logits", {"sigma": 0.5}),), options={"denominator": "none"},
        base="simclr", original={"temperature_factor": 0.2}),
    "clef": Arm("adaptive", "patients of different clinical risk repel more",
        f"CLEF, arXiv 2512.02180; {READ}. Mean-1 scaling and SCORE2 from age and sex are ours", TWO,
        weighting=RISK, base="simclr"),
    "clef-original": Arm("adaptive", "clef with its own scale of weights, and similarity regressed on risk",
        f"CLEF, arXiv 2512.02180; {READ}. SCORE2 from age and sex is ours. τ = 0.07 where the study's is 0.5",
        (_contrast("1 2", 0.5), Loss("risk-similarity", "1 2", 0.5)),
        weighting=(("clinical-risk", {"original": True}),), temperature_factor=0.14, projector=False,
        base="simclr"),
    "rocl": Arm("adversarial", "a label-free adversarial view is a third positive",
        f"Kim et al. 2020 (RoCL); {READ}", **ROCL, base="simclr"),
    "rocl-long": Arm("adversarial", "rocl, 2.5 times as long", "control", **ROCL, base="rocl", epochs=2.5),
    "acl": Arm("adversarial", "two clean views attract, and two adversarial ones do",
        f"Jiang et al. 2020 (ACL, dual stream); {READ}", (_contrast("1 2", 0.5), _contrast("1* 2*", 0.5)),
        Adversary("1* 2*"), base="simclr", original=BOTH | _steps(5, 0.25, both_sides=True)),
    "advcl": Arm("adversarial", "adversary, two views and the ECG's fast part attract; pseudo-labels",
        f"Fan et al. 2021 (AdvCL); {READ}. Fast part along time, pseudo-labels by simclr on training folds, "
        "one adversary for both are ours", (_contrast("1 2 h 0*"), Loss("pseudo-labels", "0*", 0.028)),
        Adversary("0* 1 2 h"), base="simclr", needs="simclr",
        original=ALL | BOTH | _steps(5, 0.25, both_sides=True, train_mode=True)),
    "clae": Arm("adversarial", "a one-step adversary of the whole batch is a second positive", **CLAE,
        base="simclr"),
    "clae-supcon": Arm("with labels", "supcon with clae's adversary",
        **(CLAE | {"original": CLAE["original"] | ALL}), weighting=LABELS, base="supcon"),
    "clae-hcl": Arm("adversarial adaptive", "hcl with clae's adversary", **CLAE, weighting=HN,
        tau_plus=TAU_PLUS, base="hcl"),
    "swaro": Arm("adversarial", "cluster codes agree between views, also under attacks towards other codes",
        "Wahed et al. 2022 (SwARo); abstract only, a reconstruction", (Loss("codes", "1 2 1* 2*"),),
        Adversary("1* 2* 1 2", "permuted-codes"), base="simclr", dual_norm=True),
    "claf": Arm("adversarial", "an adversary of a linear head that follows the features is a third positive",
        "Rahamim & Naeh 2022; abstract only, a reconstruction. Labels reach the head, not the features",
        (*THREE, Loss("head", "1 2")), ON_LABELS, base="simclr"),
    "dynacl": Arm("adversarial", "acl with fading augmentations, growing weight of attacks, momentum encoder",
        f"Luo et al. 2023 (DynACL); {READ}",
        (_contrast("1 2", 1 / 2, last=1 / 6), _contrast("1* 2*", 1 / 2, last=5 / 6)),
        Adversary("1* 2*"), base="acl", momentum=0.99, fading_views=True,
        original=BOTH | _steps(5, 0.25, both_sides=True)),
    "deacl": Arm("adversarial", "a student agrees with a clean simclr teacher, also under attack",
        f"Zhang et al. 2022 (DeACL); {READ}", (Loss("distil", "0"), Loss("agree", "0 0*", 2.0)),
        Adversary("0*", "teacher"), base="simclr", needs="simclr", original=_steps(5, 0.25)),
    "adv-supcon": Arm("with labels", "supcon with label-free adversarial views",
        "after Li et al. 2023 (abstract) and RSupCon (code read); a reconstruction", THREE, Adversary("1* 2"),
        weighting=LABELS, base="supcon", original=ALL),
    "adv-supcon-labels": Arm("with labels", "supcon with adversaries of the supervised contrastive loss",
        "after RSupCon (Kim & Choi 2026; code read)", THREE, Adversary("1* 2", "labelled-contrast"),
        weighting=LABELS, base="adv-supcon", original=ALL),
    "adv-supcon-noise": Arm("with labels", "supcon with noisy views", "control", THREE,
        Adversary("1*", "noise"), weighting=LABELS, base="adv-supcon", original=ALL),
    "supcon-margin": Arm("with labels", "cross-entropy and a margin between embeddings of different labels",
        "Wang et al. 2024 (arXiv 2412.19747); abstract only, a reconstruction", (CE, Loss("margin", "1 2")),
        base="supervised", own_head=True),
    "anchor": Arm("with labels", "hard positives pull more; cross-entropy under attack",
        "ANCHOR (arXiv 2510.27599); summary only, a reconstruction", (_contrast("1 1*"), CE_ATTACKED),
        ON_LABELS, weighting=(*LABELS, ("hard-positives", {"gamma": 1.0})), base="pgd-at", original=ALL),
    "ascl": Arm("with labels", "only ECGs predicted alike attract or repel; adversarial training",
        f"Bui et al. 2021 (ASCL); {READ}. Multi-label selection is ours",
        (CE_ATTACKED, _contrast("1 1*"), Loss("kl", "1 1*", 2.0)), ON_LABELS,
        weighting=(*LABELS, ("leaked-local", {})), base="pgd-at", dual_norm=False, own_head=True,
        original=ALL | BOTH | {"similarity": "chebyshev", "temperature_factor": 0.4}
        | _steps(10, 0.226, train_mode=True)),
})  # fmt: skip
