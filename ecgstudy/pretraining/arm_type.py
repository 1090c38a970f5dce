"""What an arm consists of: views × adversary × losses × pair weights, as data."""

import json
from dataclasses import dataclass, field, fields
from typing import Literal

from ecgstudy.errors import StudyError

Group = Literal[
    "reference",
    "standard",
    "adaptive",
    "adversarial",
    "adversarial adaptive",
    "with labels",
]
Schemes = tuple[tuple[str, dict], ...]
"""Weighting schemes with their options, in the order in which they are applied."""

WHOLE_BATCH = ("hard-positive-logits",)
"""Schemes that compare all anchors of a batch, so that these cannot come in blocks."""


@dataclass(frozen=True)
class Loss:
    """One summand of an arm's loss.

    Attributes
    ----------
    name
        In `ecgstudy.pretraining.losses.LOSSES`.
    views
        The views that it takes: ``1`` and ``2`` are augmented at random, ``0`` is a
        crop without augmentation and ``h`` its high-pass part. A star marks the
        attacked view.
    weight, last
        Its factor, which moves to `last` during training if that is given.
    plain
        Of a contrastive loss: uniform weights, whatever the arm's weighting.
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
    """The inner attack, which makes the attacked views.

    Attributes
    ----------
    views
        The starred ones are perturbed together, the others are held.
    loss
        What it raises: a name in `ecgstudy.pretraining.inner_attack.OBJECTIVES`, or
        ``noise``: uniform noise, and no step.
    steps, step
        Number of steps, and their size in ε; None: as the study's options say.
    random_start
        Whether it starts from uniform noise of amplitude ε, or of as many ε as it says.
        From more than one ε, nothing is clipped to ε (N-FGSM).
    both_sides
        Gradient also through the candidates of the contrastive loss.
    train_mode
        Attack in training mode; otherwise in evaluation mode.
    """

    views: str
    loss: str = "contrast"
    steps: int | None = None
    step: float | None = None
    random_start: bool | float = True
    both_sides: bool = False
    train_mode: bool = False

    @property
    def starred(self) -> list[str]:
        """The views that are attacked."""
        return [view for view in self.views.split() if view.endswith("*")]

    @property
    def held(self) -> list[str]:
        """The views that are not."""
        return [view for view in self.views.split() if not view.endswith("*")]


@dataclass(frozen=True)
class Arm:
    """One way to obtain an encoder.

    Attributes
    ----------
    group, idea, source
        For tables. The source names the paper, what was read of it, and what of the arm
        is our reconstruction.
    losses, adversary
        What is minimised, and the inner attack that makes the starred views.
    weighting, tau_plus, temperature_factor, loss_options
        Of every contrastive loss that is not `plain`: weighting schemes on top of
        uniform weights, debiasing τ⁺, factor of the study's temperature, and further
        arguments of `ecgstudy.pretraining.contrast.weighted_contrastive_loss`.
        Candidates are detached in arms with an adversary, unless the options say
        otherwise.
    original, original_attack
        What differs in the source: `loss_options` and ``temperature_factor`` for
        ``training.loss: original``, fields of the adversary for
        ``training.attack: original``.
    base
        The arm that this one is compared with.
    needs
        The arm whose encoder, of the same data and seed, is needed: as teacher, or to
        make attacks that are transferred.
    projector
        Whether the contrastive loss acts on a projection of the features.
    dual_norm
        Whether attacked views have a batch norm of their own; None: in arms with an
        adversary and a contrastive loss.
    momentum
        Rate of the moving-average encoder of the second view; 0: there is none.
    own_head
        Evaluated with the head that it was trained with, instead of a new linear head.
    features
        The scikit-learn model on engineered features (`ecgstudy.datasets.features`)
        that takes the place of an encoder.
    epochs
        Factor of the study's number of epochs.
    fading_views
        Whether augmentations fade during training.
    permuted_risk
        Whether clinical risk is permuted over patients (a control).
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
    loss_options: dict = field(default_factory=dict)
    original: dict = field(default_factory=dict)
    original_attack: dict = field(default_factory=dict)
    base: str | None = None
    needs: str | None = None
    projector: bool = True
    dual_norm: bool | None = None
    momentum: float = 0.0
    own_head: bool = False
    features: str | None = None
    epochs: float = 1.0
    fading_views: bool = False
    permuted_risk: bool = False
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
    def views(self) -> tuple[str, ...]:
        """Every view that a loss takes, once."""
        return tuple(dict.fromkeys(v for loss in self.losses for v in loss.names))

    @property
    def contrasts(self) -> tuple[Loss, ...]:
        """The losses that the weighting acts on."""
        contrasts = [loss for loss in self.losses if loss.name == "contrast"]
        return tuple(loss for loss in contrasts if not loss.plain)

    @property
    def dual(self) -> bool:
        """Whether attacked views have a batch norm of their own."""
        if self.dual_norm is None:
            return self.adversary is not None and bool(self.contrasts)
        return self.dual_norm

    def parameters(self) -> dict:
        """What decides the encoder, as plain JSON types: fields not at their default.

        What only describes the arm is left out, so that no change of words calls for a
        new training.
        """
        own = _fields_set(self)
        for name in ("group", "idea", "source", "base", "sets_headline"):
            own.pop(name, None)
        own["losses"] = [_fields_set(loss) for loss in self.losses]
        if self.adversary is not None:
            own["adversary"] = _fields_set(self.adversary)
        return json.loads(json.dumps(own))

    def __post_init__(self) -> None:
        made = self.adversary.starred if self.adversary else []
        for view in self.views:
            if view.endswith("*") and view not in made:
                raise StudyError(
                    f"a loss takes the view {view!r}, and no adversary makes it"
                )
        if (self.weighting or self.tau_plus) and not self.contrasts:
            what = ", ".join(self.schemes) or "debiasing"
            raise StudyError(
                f"{what} needs a contrastive loss with pairwise negatives, "
                "and this arm has none"
            )
        starred = [
            [view.endswith("*") for view in loss.names] for loss in self.contrasts
        ]
        is_mixed = [any(views) and not all(views) for views in starred]
        if "inferior-positives" in self.schemes and not any(is_mixed):
            raise StudyError(
                "inferior positives weight clean-adversarial pairs, "
                "and no loss of this arm has any"
            )
        names = [loss.name for loss in self.losses]
        if "leaked-local" in self.schemes and "ce" not in names:
            raise StudyError(
                "leaked-local selects by predictions, "
                "and this arm learns none: add a 'ce' loss"
            )
        if self.tau_plus and self.loss_options.get("denominator") == "none":
            raise StudyError(
                "debiasing needs the positive in the denominator; 'none' leaves it out"
            )


def _fields_set(part: Arm | Loss | Adversary) -> dict:
    """Fields of `part` that are not at their default."""
    found = {}
    for each in fields(part):
        value = getattr(part, each.name)
        if value not in (each.default, {}):
            found[each.name] = value
    return found
