"""What users call: a study, its runs, their scores, and decorators for your own parts.

    import ecgstudy as es

    study = es.load_study("params/ptbxl.yaml")
    run = study.run("ptbxl", "rocl-hn", seed=0)
    run.pretrain()
    scores = run.evaluate("slf")
    es.plots.epsilon_curve(scores)

Everything here hands over to the modules that do the work. They are imported where they
are needed, because a params file should be read without waiting for torch.
"""

import ast
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from ecgstudy import registry
from ecgstudy import study as studies
from ecgstudy.errors import StudyError
from ecgstudy.files import check_sum
from ecgstudy.study import Paths

if TYPE_CHECKING:
    from IPython.display import HTML
    from matplotlib.figure import Figure

    from ecgstudy.analysis.scores import Scores
    from ecgstudy.evaluation.explore import AttackedEcg
    from ecgstudy.records import EcgRecords

weighting = registry.WEIGHTINGS.register
arm = registry.ARMS.register
encoder = registry.ENCODERS.register
dataset = registry.DATASETS.register
attack = registry.ATTACKS.register
corruption = registry.CORRUPTIONS.register


class Run(studies.Run):
    """One encoder of a study: a data set, an arm and a seed."""

    @property
    def paths(self) -> Paths:
        """Where the study's outputs are."""
        return self.study.paths

    @property
    def folder(self) -> Path:
        """Where encoder, history and evaluations of this run are."""
        return self.paths.run(self.dataset, self.arm, self.seed)

    def records(self, protocol: str = "slf") -> "EcgRecords":
        """The prepared records that `protocol` tests on, prepared now if need be."""
        from ecgstudy.running.workflow import prepared_records

        tested = self.tested_on(protocol).dataset
        return prepared_records(self.study, tested, self.paths)

    def pretrain(self) -> pd.DataFrame:
        """Pretrain, resume, or read what is stored: one row per epoch."""
        from ecgstudy.pretraining.loop import read_history
        from ecgstudy.running import cache, launch, workflow

        step = cache.pretrain_step(self, self.paths)
        if workflow.is_done(step):
            return pd.DataFrame(read_history(step.folder))
        with workflow.recorded(step):
            history = launch.pretrain(self, self.records(), self.folder)
        return pd.DataFrame(history)

    def evaluate(self, protocol: str = "slf", recompute: bool = False) -> "Scores":
        """Stored scores of this run under `protocol`, attacked now if need be.

        They are computed if there are none, or none with these params.

        Parameters
        ----------
        protocol
            One of the study's protocols, such as ``"slf"`` or ``"slf@mitdb"``.
        recompute
            Attack again even if scores are stored, and replace them.
        """
        from ecgstudy.analysis.scores import read_scores
        from ecgstudy.running import cache, workflow

        step = cache.evaluate_step(self, self._known(protocol), self.paths)
        if recompute or not workflow.is_done(step):
            from ecgstudy.evaluation import runner

            with workflow.recorded(step):
                runner.evaluate(self, self.records(protocol), step.folder, protocol)
        return read_scores(self.paths, [self], [protocol])

    def evaluation(self, protocol: str = "slf") -> dict:
        """Masking checks, costs and geometry stored beside the scores."""
        path = self.folder / self._known(protocol) / "evaluation.json"
        if not path.exists():
            raise StudyError(f"{path}: no such file; evaluate this run first")
        return json.loads(check_sum(path).read_text(encoding="utf-8"))

    def inspect_batch(self, size: int = 256) -> pd.DataFrame:
        """Similarities and weights of all pairs of one batch, as the loss sees it."""
        from ecgstudy.evaluation.diagnostics import inspect_batch

        return inspect_batch(self, self.records(), self.folder, size)

    def embedding_plane(self) -> pd.DataFrame:
        """Features of test records on their first two principal components."""
        from ecgstudy.evaluation.embedding import embedding_plane

        device = self.study.device
        return embedding_plane(self.records(), self.folder, device=device)

    def most_fragile(self, protocol: str = "slf") -> "AttackedEcg":
        """The test ECG whose true classes lose most under the headline attack."""
        from ecgstudy.evaluation.explore import most_fragile

        folder = self.folder / self._known(protocol)
        scores = pd.read_parquet(check_sum(folder / "scores.parquet"))
        tested = self.tested_on(protocol)
        return most_fragile(tested, self.records(protocol), folder, scores)

    def describe(self) -> pd.DataFrame:
        """What the arm is: idea, source, factors, and the arm it is compared with."""
        from ecgstudy.pretraining.suffixes import describe_arm, get_arm

        row = get_arm(self.arm)
        facts = {
            "idea": row.idea,
            "source": row.source,
            "factors": describe_arm(self.arm),
            "compared with": row.base,
        }
        return pd.DataFrame(facts.items(), columns=["fact", self.arm])

    def attack_record(
        self, record: str, attack: str, epsilon_mv: float
    ) -> "AttackedEcg":
        """Attack one test ECG.

        Parameters
        ----------
        record
            Id of one of the attacked test records.
        attack
            Name of an attack, on some leads only as in ``"pgd-ce[II]"``.
        epsilon_mv
            Largest change of a sample, in mV.
        """
        from ecgstudy.evaluation.explore import attack_record

        folder = self.folder / "slf"
        records, attacks = self.records(), [attack]
        return attack_record(self, records, folder, record, attacks, epsilon_mv)

    def perturbation_energy(self, ecg: "AttackedEcg") -> pd.DataFrame:
        """Where the energy of an attacked ECG's perturbation lies."""
        from ecgstudy.evaluation.explore import perturbation_energy

        return perturbation_energy(ecg, self.records())

    def weigh_record(self, record: str) -> pd.DataFrame:
        """Pull and push weights of one ECG in a batch, under every scheme."""
        from ecgstudy.evaluation.diagnostics import weigh_record

        return weigh_record(self, self.records(), self.folder / "slf", record)

    def summarise_weights(self, weights: pd.DataFrame) -> pd.DataFrame:
        """Pull, negatives and idea of each scheme in a table of `weigh_record`."""
        from ecgstudy.evaluation.diagnostics import summarise_weights

        return summarise_weights(self, weights)

    def show_controls(self, record: str, attack: str, epsilon_mv: float) -> None:
        """Display controls for arm, record, attack and ε, in a live notebook.

        Parameters
        ----------
        record, attack, epsilon_mv
            As for `attack_record`: what they show first.
        """
        from ecgstudy.plots.explore import show_controls

        records, paths = self.records(), self.paths
        show_controls(self, records, paths, record, attack, epsilon_mv)

    def _known(self, protocol: str) -> str:
        if protocol not in self.protocols:
            known = ", ".join(self.protocols)
            raise StudyError(f"protocol {protocol!r} is not one of this run's: {known}")
        return protocol


class Study(studies.Study):
    """One study: its params, its runs and its outputs."""

    def run(self, dataset: str, arm: str, seed: int = 0) -> Run:
        """One run of the study.

        Parameters
        ----------
        dataset, arm, seed
            Each one that the params file names.

        Raises
        ------
        StudyError
            When the study has no such data set, arm or seed.
        """
        self._check("dataset", dataset, self.pretrained)
        self._check("arm", arm, self.arms)
        self._check("seed", seed, self.seeds)
        return Run(self, dataset, arm, seed)

    def runs(self) -> Iterator[Run]:
        """Every run of the study, in the params file's order."""
        for run in super().runs():
            yield Run(self, run.dataset, run.arm, run.seed)

    def records(self, dataset: str) -> "EcgRecords":
        """The prepared records of one data set, prepared now if need be."""
        from ecgstudy.running.workflow import prepared_records

        self._check("dataset", dataset, list(self.datasets))
        return prepared_records(self, dataset, self.paths)

    def scores(self) -> "Scores":
        """Every stored score of the study."""
        from ecgstudy.analysis.scores import read_scores

        return read_scores(self.paths, self.runs())

    def write_tables(self) -> dict[str, pd.DataFrame]:
        """Compute every table from the stored scores; they are written as CSV, too."""
        from ecgstudy.analysis.tables import write_tables

        return write_tables(self, self.paths)

    @property
    def headline(self) -> dict[str, float]:
        """Headline ε in mV of each data set."""
        return {
            name: options.headline_epsilon_mv for name, options in self.datasets.items()
        }

    def save_figure(
        self, figure: "Figure", name: str, values: pd.DataFrame, caption: str = ""
    ) -> "HTML":
        """Write a figure as PNG and SVG, and the exact values behind it as CSV.

        Parameters
        ----------
        figure, name
            What to write, and its files' name in the study's ``figures``.
        values
            The numbers that it shows.
        caption
            One line that says what it shows.
        """
        from ecgstudy.datasets.prepare import is_synthetic
        from ecgstudy.plots.style import save_figure

        caption, synthetic = caption or name.replace("_", " "), is_synthetic(self)
        folder = self.paths.figures
        return save_figure(figure, folder, name, values, caption, synthetic)

    def _check(self, kind: str, value: object, known: Sequence[object]) -> None:
        if value not in known:
            listed = ", ".join(map(str, known))
            raise StudyError(
                f"study {self.study!r} has no {kind} {value!r}; it has {listed}"
            )


def load_study(path: str | Path) -> Study:
    """Read and check a params file.

    Parameters
    ----------
    path
        Of the params file; a relative one that is not there is looked for in the
        checkout, so that notebooks find it wherever they are started.

    Raises
    ------
    StudyError
        Naming the file and each key that is unknown, missing or ill-typed.
    """
    study = studies.load_study(path, Study)
    assert isinstance(study, Study)
    return study


def check_parameters(names: dict[str, Any]) -> None:
    """Refuse parameters that papermill set and the notebook does not have.

    papermill only warns of a misspelt one, and runs with the default.

    Parameters
    ----------
    names
        ``globals()`` of the notebook. Its first cell assigns the parameters.

    Raises
    ------
    StudyError
        Naming the parameter, and those that there are.
    """
    cells = [cell for cell in names.get("In", []) if cell]
    known = _assigned(cells[0])
    for cell in cells:
        if cell.startswith("# Parameters"):  # papermill's
            for name in _assigned(cell):
                if name not in known:
                    listed = ", ".join(known)
                    raise StudyError(f"no parameter {name!r}; there are {listed}")


def _assigned(cell: str) -> list[str]:
    found = []
    for node in ast.parse(cell).body:
        if isinstance(node, ast.Assign):
            found += [t.id for t in node.targets if isinstance(t, ast.Name)]
    return found
