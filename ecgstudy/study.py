"""A study: the grid of runs that a params file spans, and where every output goes."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveInt, PrivateAttr, ValidationError, model_validator

from ecgstudy.errors import StudyError
from ecgstudy.files import ROOT, in_checkout
from ecgstudy.params import (
    BLACK_BOX,
    AffOptions,
    AlfOptions,
    AttackOptions,
    DatasetOptions,
    EncoderOptions,
    Grid,
    ProbeOptions,
    Protocol,
    ResourceOptions,
    Section,
    StatisticsOptions,
    TrainingOptions,
    ViewOptions,
    name_encoder,
    split_leads,
    target,
)
from ecgstudy.params import ENSEMBLE as ENSEMBLE
from ecgstudy.plain_yaml import read_yaml
from ecgstudy.registry import (
    ARMS,
    ATTACKS,
    CORRUPTIONS,
    DATASETS,
    ENCODERS,
    load_plugins,
)


class Study(Section):
    """One study: the grid data sets × arms × seeds × protocols and every setting."""

    study: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    title: str
    datasets: Annotated[dict[str, DatasetOptions], Field(min_length=1)]
    arms: Grid[str]
    seeds: Grid[int]
    protocols: Grid[Protocol] = Field(["slf"])
    encoder: EncoderOptions = EncoderOptions()
    views: ViewOptions = ViewOptions()
    training: TrainingOptions
    probe: ProbeOptions = ProbeOptions()
    alf: AlfOptions = AlfOptions()
    aff: AffOptions = AffOptions()
    evaluation: AttackOptions = AttackOptions()
    statistics: StatisticsOptions = StatisticsOptions()
    device: Literal["auto", "cpu", "cuda"] = "auto"
    processes: PositiveInt = 1
    """Share each pretraining among so many processes, on one GPU each."""
    resources: ResourceOptions = ResourceOptions()
    showcase: str | None = None
    """Arm whose first seed is shown in the report; None: the last arm."""
    _file: Path | None = PrivateAttr(None)

    @property
    def file(self) -> Path:
        """The params file that the study was read from."""
        if self._file is None:
            raise StudyError(f"study {self.study!r} was not read from a params file")
        return self._file

    @property
    def paths(self) -> "Paths":
        """Where the study's outputs are: in the checkout, or beside its params file."""
        if self._file is None:
            return Paths(self.study)
        folder = self._file.parent
        beside = folder.parent if folder.name == "params" else folder
        return Paths(self.study, beside / "outputs")

    @model_validator(mode="before")
    @classmethod
    def _pretrained_encoder(cls, content: object) -> object:
        return name_encoder(content)

    @model_validator(mode="after")
    def _check_whole(self) -> Self:
        self._check_names()
        self._check_arms()
        self._check_attacks()
        self._check_protocols()
        self._check_budgets()
        return self

    def _check_names(self) -> None:
        for arm in self.arms:
            ARMS.find(arm)
        options = self.evaluation
        for attack in (*options.ensemble, *options.attacks):
            if attack != "transfer":
                ATTACKS.check(split_leads(attack)[0])
        for corruption in options.corruptions:
            CORRUPTIONS.check(corruption)
        ENCODERS.check(self.encoder.name)

    def _check_arms(self) -> None:
        if self.showcase not in (None, *self.arms):
            raise StudyError(
                f"showcase {self.showcase!r} is not among the arms {self.arms}"
            )
        if self.training.batch_size % self.processes:
            raise StudyError(
                f"training.batch_size {self.training.batch_size} cannot be shared "
                f"evenly by {self.processes} processes; use a multiple"
            )
        for name in self.arms:
            arm = ARMS.find(name)
            if arm.needs and arm.needs not in self.arms:
                raise StudyError(
                    f"arm {name!r} needs the encoder of {arm.needs!r}: "
                    f"add {arm.needs!r} to arms"
                )
            if arm.whole_batch and self.processes > 1:
                raise StudyError(
                    f"arm {name!r} compares all anchors of a batch "
                    f"({arm.whole_batch[0]}) and cannot be shared among processes: "
                    f"give it a study with processes: 1, not {self.processes}"
                )

    def _check_attacks(self) -> None:
        options = self.evaluation
        for name in options.ensemble:
            if split_leads(name)[0] in ("transfer", *BLACK_BOX) or name.endswith("-l2"):
                raise StudyError(
                    f"evaluation.ensemble: {name!r} does not follow the gradient of "
                    "all records inside the ℓ∞ ball; name it in evaluation.attacks"
                )
        if "transfer" in options.attacks and options.transfer_from not in self.arms:
            raise StudyError(
                f"evaluation.attacks: 'transfer' is made on the arm "
                f"{options.transfer_from!r} (evaluation.transfer_from), which is not "
                f"among the arms {self.arms}"
            )

    def _check_protocols(self) -> None:
        tested = [target("", p) for p in self.protocols if target("", p)]
        for name in tested:
            if name not in self.datasets:
                raise StudyError(
                    f"protocols: {name!r} is not among the datasets {[*self.datasets]}"
                )
            others = [source for source in self.pretrained if source != name]
            if not others:
                raise StudyError(
                    f"protocols: '@{name}' needs another data set than {name!r} to "
                    "pretrain on"
                )
            for source in others:
                self._check_same_form(source, name)
        for name in self.datasets:
            if name not in self.pretrained and name not in tested:
                raise StudyError(
                    f"datasets.{name}.pretrain is false, and no protocol ends in "
                    f"@{name}: nothing uses it"
                )

    def _check_same_form(self, source: str, name: str) -> None:
        """Leads and rates that are given must agree; others show when data are read."""
        for key in ("leads", "fs"):
            values = [getattr(self.datasets[each], key) for each in (source, name)]
            if None not in values and values[0] != values[1]:
                raise StudyError(
                    f"protocols: '@{name}' needs the same {key} in "
                    f"datasets.{source} ({values[0]}) and datasets.{name} ({values[1]})"
                )

    def _check_budgets(self) -> None:
        grid = self.evaluation.epsilons_mv
        budgets = {
            f"datasets.{name}.headline_epsilon_mv": options.headline_epsilon_mv
            for name, options in self.datasets.items()
        }
        for index, epsilon in enumerate(self.evaluation.label_epsilons_mv or []):
            budgets[f"evaluation.label_epsilons_mv.{index}"] = epsilon
        for key, epsilon in budgets.items():
            if epsilon not in grid:
                raise StudyError(
                    f"{key} {epsilon} is not in the grid evaluation.epsilons_mv {grid}"
                )

    @property
    def pretrained(self) -> list[str]:
        """Data sets that encoders are pretrained on."""
        return [name for name, options in self.datasets.items() if options.pretrain]

    def asked(self, step: str) -> dict[str, int]:
        """What a job of `step` asks for, as Snakemake calls it (MB, minutes)."""
        job = getattr(self.resources, step)
        gpus = job.gpus
        if gpus is None and self.device == "cpu":
            gpus = 0
        elif gpus is None:
            gpus = self.processes if step == "pretrain" else 1
        return {"mem_mb": job.mem_mb, "runtime": job.runtime, "gpu": gpus}

    def runs(self) -> Iterator["Run"]:
        """Every run in the params file's order; arms that need others come last."""
        arms = sorted(self.arms, key=lambda arm: ARMS.find(arm).needs is not None)
        for dataset in self.pretrained:
            for arm in arms:
                for seed in self.seeds:
                    yield Run(self, dataset, arm, seed)


@dataclass(frozen=True)
class Run:
    """One cell of the grid: an encoder, evaluated under each protocol."""

    study: Study
    dataset: str
    arm: str
    seed: int

    @property
    def headline_epsilon_mv(self) -> float:
        """Headline budget of the run's data set in mV: ε of training and evaluation."""
        return self.study.datasets[self.dataset].headline_epsilon_mv

    @property
    def processes(self) -> int:
        """Processes that train the run's encoder; one where nothing is trained."""
        return self.study.processes if ARMS.find(self.arm).losses else 1

    @property
    def protocols(self) -> list[str]:
        """Protocols that the run is evaluated under.

        None transfers to the run's own data, and engineered features are not
        fine-tuned.
        """
        wanted = [p for p in self.study.protocols if target("", p) != self.dataset]
        if ARMS.find(self.arm).features:
            return [p for p in wanted if p == "slf"]
        return wanted

    def tested_on(self, protocol: str) -> "Run":
        """This run with the data set that `protocol` tests on, whose ε then counts."""
        return replace(self, dataset=target(self.dataset, protocol))

    @property
    def attack_source(self) -> str | None:
        """The other arm on whose encoder the attack ``transfer`` is made, if any."""
        arm, options = ARMS.find(self.arm), self.study.evaluation
        if arm.features:
            return arm.needs
        if "transfer" in options.attacks and self.arm != options.transfer_from:
            return options.transfer_from
        return None

    def parameters(self) -> dict:
        """Everything that decides the run's encoder, as plain JSON types."""
        study = self.study.model_dump(mode="json")
        arm = ARMS.find(self.arm)
        parameters = {
            "study": self.study.study,
            "dataset": self.dataset,
            "options": study["datasets"][self.dataset]["options"],
            "arm": self.arm,
            "factors": arm.parameters(),
            "seed": self.seed,
            "epsilon_mv": self.headline_epsilon_mv if arm.adversary else None,
        }
        for key in ("encoder", "views", "training", "device"):
            parameters[key] = study[key]
        if self.processes > 1:
            parameters["processes"] = self.processes
        return parameters


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
        """Folder of one run: encoder, history, notebooks.

        Parameters
        ----------
        dataset, arm, seed
            As in the params file.
        """
        return self.home / "runs" / dataset / arm / f"seed{seed}"

    def protocol(self, dataset: str, arm: str, seed: int, protocol: str) -> Path:
        """Folder of one run's evaluation under one protocol.

        Parameters
        ----------
        dataset, arm, seed, protocol
            As in the params file.
        """
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


def load_study(path: str | Path, kind: type[Study] = Study) -> Study:
    """Read and check a params file, after the plugin of the same name beside it.

    Parameters
    ----------
    path
        A relative one that is not there is looked for in the checkout.
    kind
        `Study`, or `ecgstudy.api.Study`, which adds verbs.

    Raises
    ------
    StudyError
        Naming the file and each key that is unknown, missing, ill-typed or out of
        range.
    """
    path = in_checkout(path)
    if not path.exists():
        known = sorted(p.stem for p in in_checkout(path.parent).glob("*.yaml"))
        raise StudyError(
            f"{path}: no such params file (studies there: {', '.join(known) or 'none'})"
        )
    load_plugins(os.environ.get("ECGSTUDY_PLUGINS", ""))
    if path.with_suffix(".py").exists():
        load_plugins(str(path.with_suffix(".py")))
    try:
        study = kind.model_validate(read_yaml(path.read_text(encoding="utf-8")))
        for name in study.datasets:
            DATASETS.check(name)
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"{path}: not a readable params file: {error}") from error
    except ValidationError as error:
        problems = "; ".join(_problem(item) for item in error.errors())
        raise StudyError(f"{path}: {problems}") from None
    except StudyError as error:
        raise StudyError(f"{path}: {error}") from None
    study._file = path.resolve()
    return study


def _problem(item: Mapping[str, Any]) -> str:
    where = ".".join(str(part) for part in item["loc"]) or "the whole file"
    found = repr(item["input"])[:200]
    if item["type"] == "extra_forbidden":
        return f"unknown key {where!r} (value {found})"
    return f"{where}: {item['msg']} (found {found})"


def derived_seed(*parts: str | float) -> int:
    """A seed from names and numbers: equal parts give equal seeds on every machine.

    A GPU's generators draw other numbers from a seed than a CPU's, and may differ
    between models of GPU: all runs of one study belong on one kind of device. Streams
    that arms share (initial weights, batches, views) leave the arm's name out.
    """
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:7], "big")
