"""What the sections of ``params/*.yaml`` may say: unknown keys, ill-typed and infinite
values are errors."""

import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

from ecgstudy.errors import StudyError
from ecgstudy.registry import PLUGIN, PLUGINS

Fraction = Annotated[float, Field(ge=0, le=1)]
METHODS = ("slf", "alf", "aff")
"""How an encoder is fine-tuned: a linear head, the same on attacked ECGs, all weights
(TRADES)."""


def _different(values: list) -> list:
    twice = [value for index, value in enumerate(values) if value in values[:index]]
    if twice:
        raise ValueError(f"{twice[0]!r} occurs twice")
    return values


T = TypeVar("T")
Different = Annotated[list[T], AfterValidator(_different)]
Grid = Annotated[Different[T], Field(min_length=1)]
"""One axis of the grid of runs: values that differ, at least one."""


def method(protocol: str) -> str:
    """One of `METHODS`: how a protocol fine-tunes."""
    return protocol.partition("@")[0]


def target(dataset: str, protocol: str) -> str:
    """The data set that a run is fine-tuned and tested on: ``slf@ptbxl`` is transfer to
    ``ptbxl``."""
    return protocol.partition("@")[2] or dataset


def _known_protocol(protocol: str) -> str:
    if method(protocol) not in METHODS or protocol.endswith("@"):
        raise ValueError(
            f"protocols are {', '.join(map(repr, METHODS))}, or one of them as in"
            " 'slf@mitdb'"
        )
    return protocol


Protocol = Annotated[str, AfterValidator(_known_protocol)]
"""A method, for transfer with ``@`` and the data set that is fine-tuned and tested
on."""


ENSEMBLE = "ensemble"
"""The headline attack: for every record the worst of the study's attacks
(`ecgstudy.attacks.ensemble`)."""


class Section(BaseModel):
    """A part of a params file: unknown keys, ill-typed and infinite values are
    errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DatasetOptions(Section):
    """One data set: where it is, and how records are cut from it."""

    headline_epsilon_mv: PositiveFloat
    """Headline budget in mV, set by ``make headline`` from validation records only;
    also ε in training."""
    data_root: str | None = None
    """Folder with PhysioNet's own layout; else ``ECGSTUDY_DATA/<name>``; else it is
    downloaded."""
    options: dict[str, int | float | str | bool] = {}
    """Keyword arguments of the data set's loader (window, number of records, …)."""
    leads: Grid[str] | None = None
    """Keep these leads only, in this order; None: all."""
    fs: PositiveFloat | None = None
    """Resample to this rate in Hz; None: as recorded."""
    pretrain: bool = True
    """False: encoders of other data sets are tested on this one, and none is
    pretrained."""


class EncoderOptions(Section):
    """Which network: a name in `ecgstudy.registry.ENCODERS` and its keyword
    arguments."""

    name: str = "resnet1d"
    options: dict[str, int | float | str | bool] = {"size": "small"}
    projection: PositiveInt = 128


class ViewOptions(Section):
    """Strengths of the augmentations (`ecgstudy.pretraining.augment`); 0 switches one
    off."""

    crop_s: PositiveFloat | None = None
    """Length of each view in s; None keeps the whole record."""
    centred: bool = False
    """Crop around the middle (beats) instead of anywhere (strips)."""
    stretch: Fraction = 0.1
    shift_s: NonNegativeFloat = 0.05
    amplitude: Fraction = 0.2
    noise_mv: NonNegativeFloat = 0.02
    wander_mv: NonNegativeFloat = 0.1
    powerline_mv: NonNegativeFloat = 0.02
    timeout: Fraction = 0.3
    lead_dropout: Fraction = 0.0


class TrainingOptions(Section):
    """Optimisation, shared by every arm (AdamW, linear warm-up, cosine decay)."""

    epochs: PositiveInt
    label_epochs: PositiveInt | None = None
    """Epochs of the references that learn from labels; None: as many as all others."""
    batch_size: Annotated[int, Field(ge=2)] = 256
    records_per_epoch: PositiveInt | None = None
    """Records drawn without replacement each epoch; None: all training records."""
    learning_rate: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 1e-4
    warmup: Fraction = 0.05
    temperature: PositiveFloat = 0.5
    attack_steps: PositiveInt = 3
    attack_step: PositiveFloat = 0.5
    """Step of the training adversary, in units of ε."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    loss: Literal["shared", "original"] = "shared"
    """`original`: each arm with its source's denominator, gradient rule, similarity and
    temperature."""
    attack: Literal["shared", "original"] = "shared"
    """`original`: each arm with its source's inner attack."""


class ProbeOptions(Section):
    """Linear probe on frozen features: zero-initialised, clean cross-entropy, no class
    weights."""

    epochs: PositiveInt = 50
    batch_size: PositiveInt = 512
    learning_rate: PositiveFloat = 0.01
    weight_decay: NonNegativeFloat = 1e-4


class AlfOptions(Section):
    """Linear head on frozen features of attacked ECGs (PGD on cross-entropy at the
    headline ε)."""

    epochs: PositiveInt = 10
    batch_size: Annotated[int, Field(ge=2)] = 128
    records_per_epoch: PositiveInt | None = None
    """Records drawn without replacement each epoch; None: all training records."""
    learning_rate: PositiveFloat = 0.01
    weight_decay: NonNegativeFloat = 1e-4
    attack_steps: PositiveInt = 10
    attack_step: PositiveFloat = 0.25
    """In units of ε."""


class AffOptions(AlfOptions):
    """All weights, by TRADES: cross-entropy plus `beta` times the shift of predictions
    under attack."""

    learning_rate: PositiveFloat = 1e-3
    beta: NonNegativeFloat = 6.0


class AttackOptions(Section):
    """Budgets of the evaluation attacks."""

    ensemble: Grid[str] = ["apgd-ce", "apgd-margin"]
    """Attacks run at every ε. Their worst per record is the headline attack,
    ``ensemble``."""
    attacks: Different[str] = ["noise", "fgsm", "pgd-margin"]
    """Further attacks, at the headline ε only; those within its ℓ∞ ball join the
    ensemble there."""
    transfer_from: str = "supervised"
    """Arm on whose model (same data, seed) the attack ``transfer`` is made."""
    epsilons_mv: Grid[PositiveFloat] = [0.005, 0.01, 0.02, 0.05, 0.1]
    steps: PositiveInt = 20
    """Gradient steps of the ensemble's members."""
    further_steps: PositiveInt | None = None
    """Gradient steps of the further attacks; None: as many."""
    restarts: PositiveInt = 1
    gradients: Literal["float32", "bfloat16"] = Field(
        default="float32", exclude_if=lambda value: value == "float32"
    )
    """Precision of the passes that attacks take gradients through; every score is in
    float32."""
    label_steps: PositiveInt = 20
    """Steps of the per-label attack (view `label`), started from the shared
    perturbation."""
    label_epsilons_mv: list[PositiveFloat] | None = None
    """Where the per-label attack runs; None: at the headline ε only."""
    batch_size: PositiveInt = 256
    queries: PositiveInt = 100
    """Queries of black-box attacks (``square``), per record."""
    query_records: PositiveInt | None = 50
    """Records, of all classes in turn, that black-box attacks are run on; None: all."""
    check_steps: PositiveInt = 100
    """Steps and restarts of the PGD that checks the ensemble for gradient masking."""
    check_restarts: PositiveInt = 5
    check_records: PositiveInt = 100
    """Records, of all classes in turn, that the expensive masking checks are made
    on."""
    max_records: PositiveInt | None = None
    """Attack at most this many test records (drawn once, the same for all arms)."""
    corruptions: Different[str] = []
    """Of `ecgstudy.registry.CORRUPTIONS`; the same records, scored like
    attacks."""
    severities: Grid[Annotated[int, Field(ge=1, le=5)]] = [1, 3, 5]


class StatisticsOptions(Section):
    """Levels of the intervals, and whether the study tests the primary family of
    contrasts."""

    primary: bool = True
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    resamples: PositiveInt = 1000


class JobOptions(Section):
    """What a job asks of the machine or cluster that it runs on; no result depends on
    it."""

    mem_mb: PositiveInt = 8000
    runtime: PositiveInt = 240
    """Minutes, after which a cluster stops the job; a stopped pretraining resumes from
    its last epoch."""
    gpus: NonNegativeInt | None = 0
    """None: one (in pretraining, one a process), or none where the study's device is
    ``cpu``."""


class NetworkJobOptions(JobOptions):
    """The same for jobs that train or attack networks."""

    runtime: PositiveInt = 1440
    gpus: NonNegativeInt | None = None


class ResourceOptions(Section):
    """What the jobs of each step ask for."""

    prepare: JobOptions = JobOptions()
    pretrain: NetworkJobOptions = NetworkJobOptions()
    evaluate: NetworkJobOptions = NetworkJobOptions()
    figures: JobOptions = JobOptions()


BLACK_BOX = ("square",)
"""Attacks that spend queries instead of gradients; a study may run them on some records
only."""


def split_leads(name: str) -> tuple[str, tuple[str, ...]]:
    """``"apgd-margin[V1+V2]"`` → ``("apgd-margin", ("V1", "V2"))``; no leads where none
    are named."""
    match = re.fullmatch(r"([^\[\]]+)\[([^\[\]+]+(?:\+[^\[\]+]+)*)\]", name)
    return (match[1], tuple(match[2].split("+"))) if match else (name, ())


def factory_module(factory: str) -> str:
    """Name of the module of a pretrained encoder's factory, ``module:function``.

    Nothing is imported here, and no other module ever is: a params file alone must not
    run just any code.

    Raises
    ------
    StudyError
        For a module that is neither one of ours nor a loaded plugin.
    """
    module = factory.partition(":")[0]
    if re.fullmatch(r"ecgstudy\.models\.released\.\w+", module):
        return module
    plugins = [p for p in PLUGINS if p.rpartition("_")[0] == f"{PLUGIN}{module}"]
    if not plugins:
        raise StudyError(
            f"encoder.factory: {module!r} is neither a module of "
            "ecgstudy.models.released nor a plugin; put a network of your own into a "
            "plugin (docs/released_encoders.md)"
        )
    return plugins[-1]


_RELEASED = ("factory", "weights", "sha256")
"""Keys of a pretrained encoder in a params file, beside its `options`."""


def name_encoder(content: Any) -> Any:
    """A study in which ``encoder: {factory, weights, sha256, options}`` is an encoder
    like all others.

    Its options then also say which leads and rate the data have, since all is adapted
    inside the model.

    Raises
    ------
    StudyError
        When a data set does not give its leads and rate, or they differ between data
        sets.
    """
    section = content.get("encoder") if isinstance(content, dict) else None
    if not isinstance(section, dict) or "factory" not in section:
        return content
    factory_module(str(section["factory"]))
    rest = {key: value for key, value in section.items() if key not in _RELEASED}
    own = {key: section[key] for key in _RELEASED if section.get(key) is not None}
    options = {
        **own,
        **_data_form(content.get("datasets")),
        **(rest.get("options") or {}),
    }
    return {**content, "encoder": {**rest, "name": "pretrained", "options": options}}


def _data_form(datasets: Any) -> dict[str, float | str]:
    forms: dict[str, dict[str, float | str]] = {}
    for name, options in datasets.items() if isinstance(datasets, dict) else ():
        leads, fs = (
            options.get(key) if isinstance(options, dict) else None
            for key in ("leads", "fs")
        )
        if not isinstance(leads, list) or not isinstance(fs, int | float):
            raise StudyError(
                f"datasets.{name}: a pretrained encoder has to know leads and fs of the"
                " data; give both"
            )
        forms[name] = {"data_leads": " ".join(map(str, leads)), "data_fs": float(fs)}
    if len({tuple(form.values()) for form in forms.values()}) > 1:
        raise StudyError(
            f"datasets {', '.join(forms)}: a pretrained encoder needs the same leads"
            " and fs in all"
        )
    return next(iter(forms.values()), {})
