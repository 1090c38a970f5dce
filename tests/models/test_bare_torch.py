"""On a machine with torch and little else: training, attacks and benchmarks need no
wfdb, no notebooks."""

import subprocess
import sys

from ecgstudy.running.workflow import prepared_records
from ecgstudy.study import ROOT, Paths, load_study

SCRIPT = """
import sys

ABSENT = {"wfdb", "neurokit2", "papermill", "snakemake", "jupytext", "nbconvert"}
ABSENT |= {"nbformat", "IPython"}

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from pathlib import Path
import torch
torch.set_num_threads(1)
import benchmarks.growth, benchmarks.loss, benchmarks.resampling, benchmarks.steps
from ecgstudy.records import load_records
from ecgstudy.evaluation.runner import evaluate
from ecgstudy.study import ROOT, load_study
from ecgstudy.pretraining.loop import pretrain

study = load_study(ROOT / "params/tiny.yaml")
prepared, folder = sys.argv[1], Path(sys.argv[2])
run, records = next(iter(study.runs())), load_records(prepared)
pretrain(run, records, folder)
scores = evaluate(run, records, folder / "slf", "slf")
assert {"none", "ensemble"} <= set(scores["attack"])
print("done", sorted(ABSENT & {name.split(".")[0] for name in sys.modules}))
"""


def test_a_run_on_prepared_data_needs_neither_wfdb_nor_neurokit2_nor_notebooks(
    tmp_path,
):
    study = load_study(ROOT / "params/tiny.yaml")
    paths = Paths(study.study, tmp_path)
    prepared_records(study, "builtin", paths)
    command = [
        sys.executable,
        "-c",
        SCRIPT,
        str(paths.data("builtin")),
        str(tmp_path / "run"),
    ]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ran.stdout.endswith("done []\n"), ran.stderr
