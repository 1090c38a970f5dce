"""What ``params/*.yaml`` may say, the grid of runs it spans, and where every output goes."""

import hashlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from ecgstudy.attacks import get_attack
from ecgstudy.encoders import get_encoder
from ecgstudy.errors import StudyError
from ecgstudy.factors import arm_row, get_arm
from ecgstudy.files import ROOT

Fraction = Annotated[float, Field(ge=0, le=1)]


def _different(values: list) -> list:
    twice = [value for index, value in enumerate(values) if value in values[:index]]
    if twice:
        raise ValueError(f"{twice[0]!r} occurs twice")
    return values


T = TypeVar("T")
Different = Annotated[list[T], AfterValidator(_different)]
Grid = Annotated[Different[T], Field(min_length=1)]
"""One axis of the grid of runs: values that differ, at least one."""


ENSEMBLE = "ensemble"
"""The headline attack: for every record the worst of the study's attacks (`ecgstudy.attacks.ensemble`)."""


class _Section(BaseModel):
    """A part of a params file: unknown keys, ill-typed and infinite values are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DatasetOptions(_Section):
    """One data set: where it is, and how records are cut from it."""

    headline_epsilon_mv: PositiveFloat
    """Headline budget in mV, set by ``make headline`` from validation records only; also ε in training."""
    data_root: str | None = None
    """Folder with PhysioNet's own layout; else ``ECGSTUDY_DATA/<name>``; else it is downloaded."""
    options: dict[str, int | float | str | bool] = {}
    """Keyword arguments of the data set's loader (window, number of records, …)."""


class EncoderOptions(_Section):
    """Which network: a name in `ecgstudy.encoders.ENCODERS` and its keyword arguments."""

    name: str = "resnet1d"
    options: dict[str, int | float | str | bool] = {"size": "small"}
    projection: PositiveInt = 128


class ViewOptions(_Section):
    """Strengths of the augmentations (`ecgstudy.views`); 0 switches one off."""

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


class TrainingOptions(_Section):
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
    """`original`: each arm with its source's denominator, gradient rule, similarity and temperature."""
    attack: Literal["shared", "original"] = "shared"
    """`original`: each arm with its source's inner attack."""


class ProbeOptions(_Section):
    """Linear probe on frozen features: zero-initialised, clean cross-entropy, no class weights."""

    epochs: PositiveInt = 50
    batch_size: PositiveInt = 512
    learning_rate: PositiveFloat = 0.01
    weight_decay: NonNegativeFloat = 1e-4


class AttackOptions(_Section):
    """Budgets of the evaluation attacks."""

    ensemble: Grid[str] = ["apgd-ce", "apgd-margin"]
    """Attacks run at every ε. Their worst per record is the headline attack, ``ensemble``."""
    attacks: Different[str] = ["noise", "fgsm", "pgd-margin"]
    """Further attacks, at the headline ε only; those that keep to its ℓ∞ ball join the ensemble there."""
    transfer_from: str = "supervised"
    """Arm on whose model (same data, seed) the attack ``transfer`` is made."""
    epsilons_mv: Grid[PositiveFloat] = [0.005, 0.01, 0.02, 0.05, 0.1]
    steps: PositiveInt = 20
    restarts: PositiveInt = 1
    label_steps: PositiveInt = 20
    """Steps of the per-label attack (view `label`), started from the shared perturbation."""
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
    """Records, of all classes in turn, that the expensive masking checks are made on."""
    max_records: PositiveInt | None = None
    """Attack at most this many test records (drawn once, the same for all arms)."""


class StatisticsOptions(_Section):
    """Levels of the intervals."""

    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    resamples: PositiveInt = 1000


class Study(_Section):
    """One study: the grid data sets × arms × seeds × protocols and every setting."""

    study: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    title: str
    datasets: Annotated[dict[str, DatasetOptions], Field(min_length=1)]
    arms: Grid[str]
    seeds: Grid[int]
    protocols: Grid[Literal["slf"]] = ["slf"]
    encoder: EncoderOptions = EncoderOptions()
    views: ViewOptions = ViewOptions()
    training: TrainingOptions
    probe: ProbeOptions = ProbeOptions()
    evaluation: AttackOptions = AttackOptions()
    statistics: StatisticsOptions = StatisticsOptions()
    device: Literal["auto", "cpu", "cuda"] = "auto"
    showcase: str | None = None
    """Arm whose first seed is shown in the report's pages 02 and 03; None: the last arm."""

    @model_validator(mode="after")
    def _check_names(self) -> "Study":
        for arm in self.arms:
            needed = get_arm(arm).needs
            if needed and needed not in self.arms:
                raise StudyError(f"arm {arm!r} needs the encoder of {needed!r}: add {needed!r} to arms")
        if self.showcase not in (None, *self.arms):
            raise StudyError(f"showcase {self.showcase!r} is not among the arms {self.arms}")
        for attack in {*self.evaluation.ensemble, *self.evaluation.attacks} - {"transfer"}:
            get_attack(attack)
        self._check_source()
        get_encoder(self.encoder.name)
        grid, labels = self.evaluation.epsilons_mv, self.evaluation.label_epsilons_mv or []
        budgets = {
            f"datasets.{name}.headline_epsilon_mv": o.headline_epsilon_mv for name, o in self.datasets.items()
        }
        budgets |= {f"evaluation.label_epsilons_mv.{index}": epsilon for index, epsilon in enumerate(labels)}
        for key, epsilon in budgets.items():
            if epsilon not in grid:
                raise StudyError(f"{key} {epsilon} is not in the grid evaluation.epsilons_mv {grid}")
        return self

    def _check_source(self) -> None:
        options = self.evaluation
        if "transfer" in options.ensemble:
            raise StudyError(
                "evaluation.ensemble: 'transfer' is one of the further attacks, evaluation.attacks"
            )
        if "transfer" in options.attacks and options.transfer_from not in self.arms:
            raise StudyError(
                f"evaluation.attacks: 'transfer' is made on the arm {options.transfer_from!r}"
                f" (evaluation.transfer_from), which is not among the arms {self.arms}"
            )

    def runs(self) -> Iterator["Run"]:
        """Every (data set, arm, seed) of the grid in the params file's order; who needs others, last."""
        for dataset in self.datasets:
            for arm in sorted(self.arms, key=lambda arm: get_arm(arm).needs is not None):
                for seed in self.seeds:
                    yield Run(self, dataset, arm, seed)


@dataclass(frozen=True)
class Run:
    """One cell of the grid: an encoder that is pretrained once and evaluated under each protocol."""

    study: Study
    dataset: str
    arm: str
    seed: int

    @property
    def headline_epsilon_mv(self) -> float:
        """Headline budget of the run's data set in mV: ε of the primary outcome and of training."""
        return self.study.datasets[self.dataset].headline_epsilon_mv

    @property
    def attack_source(self) -> str | None:
        """The other arm whose encoder the evaluation needs, to make the attack ``transfer`` on it."""
        arm, options = get_arm(self.arm), self.study.evaluation
        if arm.features:
            return arm.needs
        return (
            options.transfer_from
            if "transfer" in options.attacks and self.arm != options.transfer_from
            else None
        )

    def parameters(self) -> dict:
        """Everything that decides the run's encoder, as plain JSON types."""
        study, factors = self.study.model_dump(mode="json"), arm_row(self.arm)
        return {
            "study": self.study.study,
            "dataset": self.dataset,
            "options": study["datasets"][self.dataset]["options"],
            "arm": self.arm,
            "factors": factors,
            "seed": self.seed,
            "epsilon_mv": None if factors["adversary"] is None else self.headline_epsilon_mv,
            **{key: study[key] for key in ("encoder", "views", "training", "device")},
        }


@dataclass(frozen=True)
class Paths:
    """Where a study's outputs are (one place decides, notebooks and rules ask)."""

    study: str
    root: Path = ROOT / "outputs"

    @property
    def home(self) -> Path:
        """Folder of the whole study."""
        return self.root / self.study

    def data(self, dataset: str) -> Path:
        """Prepared records of one data set."""
        return self.home / "data" / dataset

    def run(self, dataset: str, arm: str, seed: int) -> Path:
        """Folder of one run: encoder, history, notebooks."""
        return self.home / "runs" / dataset / arm / f"seed{seed}"

    def protocol(self, dataset: str, arm: str, seed: int, protocol: str) -> Path:
        """Folder of one run's evaluation under one protocol."""
        return self.run(dataset, arm, seed) / protocol

    @property
    def tables(self) -> Path:
        """CSV tables."""
        return self.home / "tables"

    @property
    def figures(self) -> Path:
        """Figures as PNG and SVG, each with its values as CSV."""
        return self.home / "figures"

    @property
    def report(self) -> Path:
        """Self-contained HTML pages."""
        return self.home / "report"


def load_study(path: str | Path) -> Study:
    """Read and check a params file.

    Raises
    ------
    StudyError
        Naming the file and each key that is unknown, missing, ill-typed or out of range.
    """
    path = Path(path)
    load_plugins(os.environ.get("ECGSTUDY_PLUGINS", ""))
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml"))) or "none"
        raise StudyError(f"{path}: no such params file (studies there: {known})") from None
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"{path}: not a readable params file: {error}") from error
    except yaml.YAMLError as error:
        raise StudyError(f"{path}: not valid YAML: {error}") from error
    try:
        return Study.model_validate(content)
    except StudyError as error:
        raise StudyError(f"{path}: {error}") from None
    except ValidationError as error:
        problems = "; ".join(_problem(item) for item in error.errors())
        raise StudyError(f"{path}: {problems}") from error


def load_plugins(files: str) -> None:
    """Run Python files that register one's own schemes, arms, encoders, data sets or attacks.

    Parameters
    ----------
    files
        Paths separated by the system's path separator (``:``); they come from the command line
        (``make study PLUGINS=my_scheme.py``), never from a params file. Each is run once.

    Raises
    ------
    StudyError
        When a file is missing.
    """
    for file in filter(None, files.split(os.pathsep)):
        path = Path(file).resolve()
        name = f"ecgstudy_plugin_{path.stem}"
        if name in sys.modules:
            continue
        if not path.is_file():
            raise StudyError(f"plugin {file}: no such file; PLUGINS takes paths of Python files")
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)


def _problem(item: dict) -> str:
    where = ".".join(str(part) for part in item["loc"]) or "the whole file"
    if item["type"] == "extra_forbidden":
        return f"unknown key {where!r} (value {item['input']!r})"
    return f"{where}: {item['msg']} (found {item['input']!r})"


def derived_seed(*parts: str | int) -> int:
    """A seed from names and numbers: equal parts give equal streams, on every machine.

    Streams that arms must share (initial weights, batches, views) leave the arm's name out.
    """
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:7], "big")
