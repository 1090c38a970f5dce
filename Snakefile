# The grid of one study. `ecgstudy study params/NAME.yaml` starts it, after it has deleted
# the markers (provenance.json) of all steps that are out of date; paths are relative to
# the study's outputs. A marker is there or not: no file's time decides anything
# (`ancient`). A job writes its files whole, and its marker last.

import shlex
import sys

sys.path.insert(0, workflow.basedir)  # this checkout, whichever one is installed

from ecgstudy.running.cache import NOTEBOOKS, shown_run, steps
from ecgstudy.running.processes import use_this_checkout
from ecgstudy.study import ROOT, load_study

use_this_checkout()
study = load_study(ROOT / config["params"])
home = study.paths.home
STEPS = {str(step.marker.relative_to(home)): step for step in steps(study).values()}


SHOWN = shown_run(study)
RUN = "runs/{dataset}/{arm}/seed{seed}"


def words(*parts):
    """For a shell, and for Snakemake, which fills in what is in braces."""
    return shlex.join(map(str, parts)).replace("{", "{{").replace("}", "}}")


def needed(marker):
    """The markers of the steps that the one with this marker needs.

    Data only if it is not done: those that are prepared now put nothing out of date.
    """

    def of_job(wildcards):
        step = STEPS[marker.format(**wildcards)]
        needs = [n for n in step.needs if n.name != "prepare" or not step.marker.exists()]
        return ancient([str(need.marker.relative_to(home)) for need in needs])

    return of_job


def job(step):
    """The shell command that executes the notebook of a step, but for its parameters."""
    notebook = ROOT / "notebooks" / f"{NOTEBOOKS[step]}.ipynb"
    start = words(sys.executable, "-m", "ecgstudy", "job")
    gpus = "--gpus {resources.gpu} --jobs-per-gpu {resources.jobs_per_gpu}"
    given = words(f"params={config['params']}")
    return f"{start} {gpus} {words(notebook)} {{output}} {given}"


wildcard_constraints:
    dataset="[^/]+",
    arm="[^/]+",
    seed=r"-?\d+",
    protocol="[^/]+",


localrules:
    all,


rule all:
    input:
        [marker for marker, step in STEPS.items() if step.name != "prepare"],


rule prepare:
    output:
        "data/{dataset}/provenance.json",
    resources:
        **study.asked("prepare"),
        jobs_per_gpu=0,
    shell:
        job("prepare") + " dataset={wildcards.dataset}"


rule pretrain:
    priority: 1
    input:
        needed(RUN + "/provenance.json"),
    output:
        RUN + "/provenance.json",
    threads: study.processes
    resources:
        **study.asked("pretrain"),
        jobs_per_gpu=0,  # see profiles/gpu
    shell:
        job("pretrain") + " dataset={wildcards.dataset} arm={wildcards.arm} seed={wildcards.seed}"


rule evaluate:
    priority: 1
    input:
        needed(RUN + "/{protocol}/provenance.json"),
    output:
        RUN + "/{protocol}/provenance.json",
    resources:
        **study.asked("evaluate"),
        jobs_per_gpu=0,  # see profiles/gpu
    shell:
        job("evaluate")
        + " dataset={wildcards.dataset} arm={wildcards.arm} seed={wildcards.seed} protocol={wildcards.protocol}"


rule figures:
    priority: 1
    input:
        needed("tables/provenance.json"),
    output:
        "tables/provenance.json",
    resources:
        **study.asked("figures"),
        jobs_per_gpu=0,
    shell:
        job("figures")


# One ECG of the run that the report shows.
rule explore:
    input:
        ancient(f"data/{SHOWN.dataset}/provenance.json"),
        ancient(RUN.format(**vars(SHOWN)) + f"/{SHOWN.protocols[0]}/provenance.json"),
    output:
        "explore/provenance.json",
    resources:
        **study.asked("evaluate"),
        jobs_per_gpu=0,  # see profiles/gpu
    shell:
        job("explore") + " " + words(f"dataset={SHOWN.dataset}", f"arm={SHOWN.arm}", f"seed={SHOWN.seed}")
