"""What ``params/*.yaml`` may say, the grid of runs it spans, and where every output goes."""

import hashlib
import importlib.util
import os
import reprlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, ValidationError, model_validator

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
    spelled_out,
    split_leads,
    target,
)
from ecgstudy.params import ENSEMBLE as ENSEMBLE
from ecgstudy.params import PLUGIN as PLUGIN
from ecgstudy.plain_yaml import read_yaml
from ecgstudy.registry import ARMS, ATTACKS, CORRUPTIONS, ENCODERS


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
    """Share each pretraining among so many processes, on one GPU each (`ecgstudy.pretraining.distributed`)."""
    resources: ResourceOptions = ResourceOptions()
    showcase: str | None = None
    """Arm whose first seed is shown in the report's pages 02 and 03; None: the last arm."""

    @model_validator(mode="before")
    @classmethod
    def _pretrained_encoder(cls, content: object) -> object:
        return spelled_out(content)

    @model_validator(mode="after")
    def _check_names(self) -> "Study":
        for arm in self.arms:
            needed = ARMS.find(arm).needs
            if needed and needed not in self.arms:
                raise StudyError(
                    f"arm {arm!r} needs the encoder of {needed!r}: add {needed!r} to arms"
                )
        if self.showcase not in (None, *self.arms):
            raise StudyError(
                f"showcase {self.showcase!r} is not among the arms {self.arms}"
            )
        for attack in {*self.evaluation.ensemble, *self.evaluation.attacks} - {
            "transfer"
        }:
            ATTACKS.check(split_leads(attack)[0])
        for corruption in self.evaluation.corruptions:
            CORRUPTIONS.check(corruption)
        self._check_source()
        self._check_protocols()
        self._check_processes()
        ENCODERS.check(self.encoder.name)
        grid, labels = (
            self.evaluation.epsilons_mv,
            self.evaluation.label_epsilons_mv or [],
        )
        budgets = {
            f"datasets.{name}.headline_epsilon_mv": o.headline_epsilon_mv
            for name, o in self.datasets.items()
        }
        budgets |= {
            f"evaluation.label_epsilons_mv.{index}": epsilon
            for index, epsilon in enumerate(labels)
        }
        for key, epsilon in budgets.items():
            if epsilon not in grid:
                raise StudyError(
                    f"{key} {epsilon} is not in the grid evaluation.epsilons_mv {grid}"
                )
        return self

    def _check_source(self) -> None:
        options = self.evaluation
        for name in options.ensemble:
            if split_leads(name)[0] in ("transfer", *BLACK_BOX) or name.endswith("-l2"):
                raise StudyError(
                    f"evaluation.ensemble: {name!r} does not follow the gradient of all records inside the ℓ∞"
                    " ball; name it in evaluation.attacks"
                )
        if "transfer" in options.attacks and options.transfer_from not in self.arms:
            raise StudyError(
                f"evaluation.attacks: 'transfer' is made on the arm {options.transfer_from!r}"
                f" (evaluation.transfer_from), which is not among the arms {self.arms}"
            )

    def _check_protocols(self) -> None:
        sources = self.pretrained
        for protocol in self.protocols:
            to = target("", protocol)
            if to and to not in self.datasets:
                raise StudyError(
                    f"protocols: {to!r} of {protocol!r} is not among the datasets {[*self.datasets]}"
                )
            if to and not set(sources) - {to}:
                raise StudyError(
                    f"protocols: {protocol!r} needs another data set than {to!r} to pretrain on"
                )
            for source in sources if to else ():
                _check_common_form(
                    protocol, source, self.datasets[source], self.datasets[to]
                )
        for name in self.datasets:
            if name not in sources and all(
                target("", p) != name for p in self.protocols
            ):
                raise StudyError(
                    f"datasets.{name}.pretrain is false, and no protocol ends in @{name}: nothing uses it"
                )

    def _check_processes(self) -> None:
        if self.training.batch_size % self.processes:
            raise StudyError(
                f"training.batch_size {self.training.batch_size} cannot be shared evenly by"
                f" {self.processes} processes; use a multiple"
            )
        for arm in self.arms if self.processes > 1 else ():
            if whole := ARMS.find(arm).whole_batch:
                raise StudyError(
                    f"arm {arm!r} compares all anchors of a batch ({whole[0]}) and cannot be shared among"
                    f" processes: give it a study of its own with processes: 1, not {self.processes}"
                )

    @property
    def pretrained(self) -> list[str]:
        """Data sets that encoders are pretrained on."""
        return [name for name, options in self.datasets.items() if options.pretrain]

    def asked(self, step: str) -> dict[str, int]:
        """What a job of `step` asks for, in the words of Snakemake and its SLURM plugin (MB, minutes)."""
        job = getattr(self.resources, step)
        each = self.processes if step == "pretrain" else 1
        gpus = each * (self.device != "cpu") if job.gpus is None else job.gpus
        return {"mem_mb": job.mem_mb, "runtime": job.runtime, "gpu": gpus}

    def runs(self) -> Iterator["Run"]:
        """Every (data set, arm, seed) of the grid in the params file's order; who needs others, last."""
        for dataset in self.pretrained:
            for arm in sorted(
                self.arms, key=lambda arm: ARMS.find(arm).needs is not None
            ):
                for seed in self.seeds:
                    yield Run(self, dataset, arm, seed)


def _check_common_form(
    protocol: str, source: str, ours: DatasetOptions, theirs: DatasetOptions
) -> None:
    """What can be known before the data are read: leads and rates that are both given must agree."""
    for key in ("leads", "fs"):
        one, other = getattr(ours, key), getattr(theirs, key)
        if None not in (one, other) and one != other:
            raise StudyError(
                f"protocols: {protocol!r} needs the same {key} in datasets.{source} ({one})"
                f" and datasets.{target(source, protocol)} ({other})"
            )


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
    def processes(self) -> int:
        """Processes that train the run's encoder; one where nothing is trained."""
        return self.study.processes if ARMS.find(self.arm).losses else 1

    @property
    def protocols(self) -> list[str]:
        """Protocols that the run is evaluated under: no transfer to its own data, no fine-tuned features."""
        wanted = [p for p in self.study.protocols if target("", p) != self.dataset]
        return (
            [p for p in wanted if p == "slf"]
            if ARMS.find(self.arm).features
            else wanted
        )

    def tested_on(self, protocol: str) -> "Run":
        """This run with the target of `protocol` for its data set: then its headline ε and streams count."""
        return replace(self, dataset=target(self.dataset, protocol))

    @property
    def attack_source(self) -> str | None:
        """The other arm whose encoder the evaluation needs, to make the attack ``transfer`` on it."""
        arm, options = ARMS.find(self.arm), self.study.evaluation
        if arm.features:
            return arm.needs
        return (
            options.transfer_from
            if "transfer" in options.attacks and self.arm != options.transfer_from
            else None
        )

    def parameters(self) -> dict:
        """Everything that decides the run's encoder, as plain JSON types."""
        study, factors = (
            self.study.model_dump(mode="json"),
            ARMS.find(self.arm).parameters(),
        )
        return {
            "study": self.study.study,
            "dataset": self.dataset,
            "options": study["datasets"][self.dataset]["options"],
            "arm": self.arm,
            "factors": factors,
            "seed": self.seed,
            "epsilon_mv": self.headline_epsilon_mv if "adversary" in factors else None,
            **{key: study[key] for key in ("encoder", "views", "training", "device")},
            **({"processes": self.processes} if self.processes > 1 else {}),
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


def load_study(path: str | Path, kind: type[Study] = Study) -> Study:
    """Read and check a params file.

    Parameters
    ----------
    path
        A relative one that is not there is looked for in the checkout.
    kind
        `Study`, or `ecgstudy.api.Study`, which adds verbs.

    Raises
    ------
    StudyError
        Naming the file and each key that is unknown, missing, ill-typed or out of range.
    """
    path = in_checkout(path)
    load_plugins(os.environ.get("ECGSTUDY_PLUGINS", ""))
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        known = (
            ", ".join(sorted(p.stem for p in in_checkout(path.parent).glob("*.yaml")))
            or "none"
        )
        raise StudyError(
            f"{path}: no such params file (studies there: {known})"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise StudyError(f"{path}: not a readable params file: {error}") from error
    try:
        return kind.model_validate(read_yaml(text))
    except StudyError as error:
        raise StudyError(f"{path}: {error}") from None
    except ValidationError as error:
        problems = "; ".join(_problem(item) for item in error.errors())
        raise StudyError(f"{path}: {problems}") from None


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
        if not path.is_file():
            raise StudyError(
                f"plugin {file}: no such file; PLUGINS takes paths of Python files"
            )
        name = f"{PLUGIN}{path.stem}_{hashlib.sha256(bytes(path)).hexdigest()[:8]}"
        if name in sys.modules:
            continue
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]  # half of it must not pass for all of it
            raise


def _problem(item: dict) -> str:
    where = ".".join(str(part) for part in item["loc"]) or "the whole file"
    brief = (
        reprlib.Repr()
    )  # the whole text of a few aliases of aliases would fill the memory
    brief.maxlevel, brief.maxstring, brief.maxother = 2, 200, 200
    found = brief.repr(item["input"])
    if item["type"] == "extra_forbidden":
        return f"unknown key {where!r} (value {found})"
    return f"{where}: {item['msg']} (found {found})"


def derived_seed(*parts: str | float) -> int:
    """A seed from names and numbers: equal parts give equal seeds on every machine.

    Equal streams they give on one kind of device: a GPU's generators draw other numbers from a seed than a
    CPU's, and may differ between models of GPU, so that all runs of one study belong on one kind.
    Streams that arms must share (initial weights, batches, views) leave the arm's name out.
    """
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:7], "big")
