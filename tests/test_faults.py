"""Every fault that the design names: what brings it about, its error word for word, and nothing lost."""

import os
import re
import shutil
import subprocess
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import test_mitdb
import test_ptbxl
import test_study
import torch
import yaml
from matplotlib.figure import Figure
from test_download import NEEDED
from test_download import site as web  # noqa: F401 (a fixture)
from test_notebooks import small_notebook
from test_resume import of_a_gpu, truncated
from toy import toy_records, toy_run
from wfdb_fixtures import write_mitdb, write_ptbxl

from ecgstudy.analysis import tables
from ecgstudy.datasets import download
from ecgstudy.errors import StudyError
from ecgstudy.evaluation.runner import evaluate
from ecgstudy.files import sha256, write_json
from ecgstudy.models.checkpoints import load_encoder, load_tensors, save_tensors
from ecgstudy.plots import style as plotting
from ecgstudy.pretraining.loop import pretrain
from ecgstudy.records import save_records
from ecgstudy.running import engine, gpus, workflow
from ecgstudy.running.papermill import execute
from ecgstudy.study import AttackOptions, Paths, Study, load_study

RUN = toy_run("supervised")
OTHER = toy_run("supervised", temperature=0.2)
"""A run of other parameters: what `RUN` left is out of date for it."""
TABLE = toy_records().table[["record"]]


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    """Data sets on disk, and outputs of an earlier study: prepared data, an encoder, a table, a page."""
    root = tmp_path_factory.mktemp("earlier")
    for name, write in {"mitdb": write_mitdb, "ptbxl": write_ptbxl}.items():
        (root / name).mkdir()
        write(root / name)
        save_records(toy_records(), root / "outputs/faults/data" / name)
    run = Paths("faults", root / "outputs").run("toy", "supervised", 0)
    pretrain(RUN, toy_records(), run)
    evaluated = (
        f"slf/{name}"
        for name in ("scores.parquet", "head.safetensors", "evaluation.json")
    )
    for file in (
        run / name for name in ("02_pretrain.ipynb", "provenance.json", *evaluated)
    ):
        file.parent.mkdir(exist_ok=True)
        file.write_text("earlier")
    for file in (
        "tables/claims.csv",
        "figures/forest.png",
        "figures/forest.csv",
        "report/index.html",
    ):
        path = root / "outputs/faults" / file
        path.parent.mkdir(exist_ok=True)
        path.write_text("earlier")
    return root


@dataclass
class Place:
    """Where a fault happens: a copy of the earlier outputs, and what tests lend."""

    root: Path
    earlier: Path
    monkeypatch: pytest.MonkeyPatch
    later: ExitStack
    request: pytest.FixtureRequest

    @property
    def paths(self) -> Paths:
        return Paths("faults", self.root / "outputs")

    @property
    def run(self) -> Path:
        return self.paths.run("toy", "supervised", 0)

    @property
    def params(self) -> Path:
        return self.root / "small.yaml"

    def outputs(self) -> dict[str, str]:
        files = (path for path in self.paths.home.rglob("*") if path.is_file())
        return {str(path.relative_to(self.root)): sha256(path) for path in files}


@pytest.fixture
def place(earlier, tmp_path, monkeypatch, request):
    shutil.copytree(earlier / "outputs", tmp_path / "outputs")
    with ExitStack() as later:
        yield Place(tmp_path, earlier, monkeypatch, later, request)


@dataclass(frozen=True)
class Fault:
    """`spoil` brings it about, `act` meets it and says `says`, where … stands for a library's words."""

    says: str
    act: object
    spoil: object = lambda place: None


def reading(name, case, says):
    """One of the bad inputs that the loader's own tests make, met when the data are prepared anew."""
    spoil, _ = {"mitdb": test_mitdb.BAD, "ptbxl": test_ptbxl.BAD}[name][case]
    options = spoil if isinstance(spoil, dict) else {}

    def copy_and_spoil(place):
        shutil.copytree(place.earlier / name, place.root / name)
        if not options:
            spoil(place.root / name)

    def prepare(place):
        data = {
            "headline_epsilon_mv": 0.05,
            "data_root": str(place.root / name),
            "options": options,
        }
        study = Study.model_validate(
            {**test_study.GOOD, "datasets": {name: data}} | GRID
        )
        workflow.prepared_records(study, name, place.paths)

    return Fault(says, prepare, copy_and_spoil)


GRID = {"evaluation": {"epsilons_mv": [0.05]}}


def asking(case, says):
    """One of the bad parameters of the params files' own tests."""
    return asking_for(*test_study.BAD[case][:2], says)


def asking_for(key, value, says):
    def write(place):
        place.params.write_text(yaml.safe_dump(test_study.changed(key, value)))

    return Fault(
        says, lambda place: workflow.plan(load_study(place.params), place.paths), write
    )


def loading(damage, says):
    """A spoilt encoder, which is loaded."""
    return Fault(
        says, lambda place: load_encoder(place.run), lambda place: damage(place.run)
    )


def resuming(damage, says):
    """A spoilt checkpoint, from which a pretraining would continue."""

    def interrupt_and_spoil(place):
        with place.monkeypatch.context() as patch:
            patch.setattr("ecgstudy.pretraining.loop._finish", interrupt)
            with pytest.raises(KeyboardInterrupt):
                pretrain_anew(place)
        damage(place.run / "checkpoint.safetensors")

    return Fault(says, pretrain_anew, interrupt_and_spoil)


def interrupt(*_):
    raise KeyboardInterrupt


def pretrain_anew(place):
    pretrain(OTHER, toy_records(), place.run)


def of_another_model(path):
    tensors, note = load_tensors(path)
    save_tensors(
        path,
        {name: t for name, t in tensors.items() if not name.startswith("model.head")},
        note,
    )


def of_a_wider_encoder(run):
    form = (run / "encoder.json").read_text()
    (run / "encoder.json").write_text(form.replace('"width": 8', '"width": 16'))


def full(file, act):
    """A disk that is full once `file` is written: what is written beside it goes to /dev/full."""

    def spoil(place):
        path = place.paths.home / file
        path.with_name(f".{path.name}.{os.getpid()}.part").symlink_to("/dev/full")

    says = f"{{home}}/{file} cannot be written (…); free some space or use a folder you may write to"
    return Fault(says, act, spoil)


def save_data(place):
    save_records(toy_records(), place.paths.data("mitdb"))


def evaluate_anew(place):
    options = {
        "ensemble": ["pgd-margin"],
        "attacks": [],
        "corruptions": [],
        "epsilons_mv": [0.05],
    }
    least = AttackOptions(
        **options, steps=1, check_steps=1, check_restarts=1, check_records=2, queries=1
    )
    study = RUN.study.model_copy(update={"evaluation": least})
    evaluate(replace(RUN, study=study), toy_records(), place.run / "slf", "slf")


def draw(place):
    with plotting.style():
        figure = Figure()
    plotting.save_figure(
        figure, place.paths.figures, "forest", TABLE, alt="A forest.", synthetic=True
    )


def refused(act, file):
    """A folder of outputs that may only be read."""
    says = f"{{home}}{file} cannot be written (…); free some space or use a folder you may write to"
    return Fault(says, act, only_to_read)


def only_to_read(place):
    """Take away the right to write; root, whom no mode stops, gets a read-only mount."""
    folder = place.paths.home
    if os.geteuid():
        for path in (folder, *folder.rglob("*")):
            if path.is_dir():
                path.chmod(0o500)
                place.later.callback(path.chmod, 0o700)
        return
    for options in (["--bind", str(folder)], ["-o", "remount,bind,ro"]):
        if subprocess.run(
            ["mount", *options, str(folder)], capture_output=True
        ).returncode:
            pytest.skip("root may not mount here")
        if options[0] == "--bind":
            place.later.callback(subprocess.run, ["umount", str(folder)], check=True)


def hold_the_study(place):
    with engine.study_lock(place.paths):
        pytest.fail("held")


def without_gpu(place):
    place.monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    place.monkeypatch.setenv("PATH", "")
    place.monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def held_in_vain(place):
    without_gpu(place)
    place.monkeypatch.setenv(gpus.HELD, "GPU-a")


def pretrain_on(device):
    study = OTHER.study.model_copy(update={"device": device})
    return lambda place: pretrain(replace(OTHER, study=study), toy_records(), place.run)


def notebook(code, says):
    """The notebook that pretrains, with `code` in it."""

    def run(place):
        source = small_notebook(place.root / "02_pretrain.ipynb", code)
        execute(
            source, place.run / "02_pretrain.ipynb", {"value": 2}, place.root / "logs"
        )

    return Fault(
        f"02_pretrain.ipynb{says}\n(the notebook is kept: {{root}}/logs/02_pretrain-2.ipynb)",
        run,
    )


OUT_OF_MEMORY = """
class OutOfMemoryError(RuntimeError): "As torch's, which takes seconds to import."
raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
"""


def break_connection(place):
    place.request.getfixturevalue("web").cuts = {"100.dat": 1}
    place.monkeypatch.setattr(download, "ATTEMPTS", 1)


def fetch(place):
    base = place.request.getfixturevalue("web").source.base
    folder = place.paths.home / "downloads"
    download.fetch_dataset("tiny", folder, download.Source(base, NEEDED), workers=2)


BEATS = "N L R e j A a J S V E F / Q f"
FAULTS = {
    "truncated .dat": reading(
        "mitdb", "truncated .dat",
        "{root}/mitdb/103: the .hea is damaged or the .dat truncated (…); download the record again",
    ),
    "missing .dat": reading(
        "mitdb", "missing .dat",
        "{root}/mitdb/103.dat: no such file; download the data set again or complete it",
    ),
    "missing .atr": reading(
        "mitdb", "missing .atr",
        "{root}/mitdb/103.atr: no such file; download the data set again or complete it",
    ),
    "missing .hea": reading(
        "mitdb", "missing .hea",
        "{root}/mitdb/103.hea: no such file; download the data set again or complete it",
    ),
    "wrong rate": reading(
        "mitdb", "wrong rate", "{root}/mitdb/103.hea: sampling rate 250 Hz; it must be 360 Hz"
    ),
    "NaN": reading(
        "mitdb", "invalid sample",
        "mitdb: record '103/720', lead 'MLII' has NaN or Inf samples; leave the record out or repair it",
    ),
    "flat lead": reading(
        "mitdb", "flat lead",
        "mitdb: record '103/360', lead 'MLII' is flat; leave the record out or repair it",
    ),
    "missing lead": reading(
        "mitdb", "no MLII", "{root}/mitdb/103.hea: lead 'MLII' is missing; it has V5, V1"
    ),
    "duplicate record": reading("mitdb", "duplicate beat", "mitdb: record '103/720' occurs twice; keep one"),
    "duplicate record in a table": reading(
        "ptbxl", "duplicate record", "{root}/ptbxl/ptbxl_database.csv: record 8 occurs twice; keep one row"
    ),
    "wrong checksum": reading(
        "mitdb", "wrong checksum",
        "{root}/mitdb/103.dat: checksum differs from SHA256SUMS.txt; delete the file and download it again",
    ),
    "unknown label": reading(
        "mitdb", "unknown beat",
        f"{{root}}/mitdb/103.atr: unknown beat symbol 'B'; known beats: {BEATS}",
    ),
    "unknown label in a table": reading(
        "ptbxl", "unknown SCP code",
        "{root}/ptbxl/ptbxl_database.csv: record 7: unknown SCP code 'XYZ'; "
        "scp_statements.csv lists the known ones",
    ),
    "empty fold": reading(
        "ptbxl", "empty fold", "ptbxl: the validation split has no records; every study needs some"
    ),
    "class absent from a fold": reading(
        "ptbxl", "class absent",
        "ptbxl: class 'HYP' has no record in the test split; leave the class out or add records",
    ),
    "patient in two folds": reading(
        "ptbxl", "patient in two splits",
        "ptbxl: patient '9055' is in test and train; splits must not share patients",
    ),
    "unknown parameter": asking("unknown nested key", "{params}: unknown key 'training.epoch' (value 3)"),
    "unknown parameter of a data set": reading(
        "ptbxl", "unknown option",
        "datasets.ptbxl.options.rate: Unexpected keyword argument (found 500); known options: task, exclude",
    ),
    "ill-typed parameter": asking(
        "ill-typed",
        "{params}: training.epochs: Input should be a valid integer, unable to parse string as an integer "
        "(found 'many')",
    ),
    "unknown data set": asking_for(
        "datasets", {"mitbd": {"headline_epsilon_mv": 0.05}},
        "unknown data set 'mitbd'; known: builtin, mitdb, ptbxl",
    ),
    "unknown arm": asking("unknown arm", "{params}: unknown arm 'simclear'; known: random, …"),
    "impossible combination of factors": asking_for(
        "arms", ["acl-ip"],
        "{params}: arm 'acl-ip': inferior positives weigh clean-adversarial pairs, and no loss of this arm "
        "has any",
    ),
    "impossible control": asking_for(
        "arms", ["simclr-temperature"],
        "{params}: arm 'simclr-temperature': the control -temperature replaces hard negatives, and this arm "
        "has none",
    ),
    "damaged checkpoint": resuming(
        truncated,
        "{run}/checkpoint.safetensors: not a readable safetensors file (…); delete it to make it anew",
    ),
    "damaged encoder": loading(
        lambda run: truncated(run / "encoder.safetensors"),
        "{run}/encoder.safetensors: not a readable safetensors file (…); delete it to make it anew",
    ),
    "missing encoder": loading(
        lambda run: (run / "encoder.safetensors").unlink(),
        "{run}/encoder.safetensors: no such file; run `make study STUDY=…`, which makes it",
    ),
    "checkpoint of another encoder": resuming(
        of_another_model,
        "{run}/checkpoint.safetensors: made for another encoder or head ('…' does not match); "
        "use the options in the encoder.json beside it",
    ),
    "checkpoint of a GPU": resuming(
        of_a_gpu,
        "{run}/checkpoint.safetensors: begun on a GPU, it cannot go on on the CPU, whose random generators "
        "are others ('…' has 16 bytes, not 5,056); go on where torch finds a GPU, or delete it to start anew",
    ),
    "encoder of other options": loading(
        of_a_wider_encoder,
        "{run}/encoder.safetensors: made for another encoder or head ('…' does not match); "
        "use the options in the encoder.json beside it",
    ),
    "full disk, data": full("data/mitdb/signals.npy", save_data),
    "full disk, table of the data": full("data/mitdb/table.parquet", save_data),
    "full disk, checkpoint": full("runs/toy/supervised/seed0/checkpoint.safetensors", pretrain_anew),
    "full disk, encoder": full("runs/toy/supervised/seed0/encoder.safetensors", pretrain_anew),
    "full disk, history": full("runs/toy/supervised/seed0/history.jsonl", pretrain_anew),
    **{
        f"full disk, {name}": full(f"runs/toy/supervised/seed0/slf/{name}", evaluate_anew)
        for name in ("scores.parquet", "head.safetensors", "evaluation.json")
    },
    "full disk, table": full(
        "tables/claims.csv",
        lambda place: tables.write_csv({"claims": TABLE}, place.paths.tables),
    ),
    "full disk, figure": full("figures/forest.png", draw),
    "full disk, JSON": full(
        "runs/toy/supervised/seed0/provenance.json",
        lambda place: write_json(place.run / "provenance.json", {"stamp": "new" * 9999}),
    ),
    "read-only outputs": refused(hold_the_study, ""),
    "read-only outputs, checkpoint": refused(
        pretrain_anew, "/runs/toy/supervised/seed0/checkpoint.safetensors"
    ),
    "read-only outputs, data": refused(save_data, "/data/mitdb/card.json"),
    "no GPU": Fault(
        "device 'cuda' was asked for, but torch finds no GPU; use 'cpu' or 'auto'",
        pretrain_on("cuda"), without_gpu,
    ),
    "no GPU that torch can use": Fault(
        "this job holds GPU GPU-a, but torch … finds none; install torch's CUDA build or a newer driver "
        "(`make doctor` looks), or compute on the CPU with PROFILE=local",
        pretrain_on("auto"), held_in_vain,
    ),
    "no GPU for the profile": Fault(
        "no GPU to run on: nvidia-smi lists 0, CUDA_VISIBLE_DEVICES is ''; use the profile 'local'",
        lambda place: gpus.visible_gpus(), without_gpu,
    ),
    "out of GPU memory": notebook(
        OUT_OF_MEMORY,
        " failed in cell 3: OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."
        "; lower training.batch_size or evaluation.batch_size, or run fewer jobs a GPU",
    ),
    "dead kernel": notebook(
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        ": Kernel died: it was killed, or the memory was not enough",
    ),
    "interrupted download": Fault(
        "tiny: 1 of 4 files failed: 100.dat could not be fetched (…); "
        "run again to fetch what is missing in {home}/downloads",
        fetch, break_connection,
    ),
}  # fmt: skip

DESIGN = """truncated .dat, missing .dat, missing .atr, missing .hea, wrong rate, NaN, flat lead,
missing lead, duplicate record, wrong checksum, unknown label, empty fold, class absent from a fold,
patient in two folds, unknown parameter, ill-typed parameter, unknown arm,
impossible combination of factors, damaged checkpoint, checkpoint of another encoder, full disk,
read-only outputs, no GPU, out of GPU memory, dead kernel, interrupted download"""


def test_every_fault_of_the_design_has_a_row():
    rows = {name.partition(",")[0] for name in FAULTS}
    assert set(re.split(r",\s", DESIGN)) <= rows


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_one_error_word_for_word_and_leaves_earlier_outputs_untouched(
    name, place
):
    fault = FAULTS[name]
    fault.spoil(place)
    before = place.outputs()
    with pytest.raises(StudyError) as caught:
        fault.act(place)
    where = {
        "root": place.root,
        "home": place.paths.home,
        "run": place.run,
        "params": place.params,
    }
    expected = re.escape(fault.says.format(**where)).replace("…", ".+")
    assert re.fullmatch(expected, str(caught.value)), str(caught.value)
    after = place.outputs()
    assert {file: after.get(file) for file in before} == before
    added = {file for file in after if file not in before and "/downloads/" not in file}
    added = {
        file for file in added if not file.endswith("checkpoint.safetensors")
    }  # from which to go on
    assert not added, "half a result must not pass for one"
