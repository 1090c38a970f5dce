# The grid of one study. Started by `python -m ecgstudy.running.workflow study params/NAME.yaml` (see the
# Makefile), which writes every step's run.json first; paths are relative to outputs/NAME.
#
# Whether a step is out of date is decided by content, not by files' times: the workflow compares the
# stamps of what is asked for and what was done, and sets the times of run.json and of the files that
# steps hand on accordingly.
#
# `update` marks what Snakemake must not delete before a step runs again, and puts back if the step fails.
# provenance.json, which says that a step is done, goes first all the same (`undone`): a killed step leaves
# files of two runs.

import shlex
import sys
from pathlib import Path

from snakemake.logging import logger

from ecgstudy.pretraining.suffixes import get_arm
from ecgstudy.datasets.prepare import is_synthetic
from ecgstudy.params import method, target
from ecgstudy.running.provenance import is_done
from ecgstudy.study import ROOT, load_study



def quoted(word):
    """For a shell, and for Snakemake, which fills in what is in braces."""
    return shlex.quote(str(word)).replace("{", "{{").replace("}", "}}")


study = load_study(ROOT / config["params"])
python = quoted(sys.executable)
run_notebook = f"{python} -m ecgstudy.running.papermill {quoted(ROOT / 'notebooks')}/"
on_its_gpu = f"{python} -m ecgstudy.running.gpus " + "{resources.jobs_per_gpu} {resources.gpu} "  # 0 jobs: any GPU
parameters = quoted(f"params={config['params']}")
undone = "rm -f {output.done}; "
logger.addFilter(lambda record: not record.getMessage().startswith("Cannot restore"))  # as nothing was there

PREPARED = ["card.json", "signals.npy", "labels.npy", "table.parquet"]
RESULTS = "runs/{dataset}/{arm}/seed{seed}"
RUNS = {RESULTS.format(**vars(run)): run for run in study.runs()}
EVALUATIONS = [f"{folder}/{protocol}" for folder, run in RUNS.items() for protocol in run.protocols]
TABLES = "robust_auroc per_class subgroups contrasts factor_effects claims masking_checks perturbations cost sensitivity contrast_sensitivity headline_check".split()

# Report page → executed notebook, the results first. The report shows the pages of one run; `make report
# RUNS=1` makes all of them.
PAGES = {
    "report/index.html": "tables/04_figures.ipynb",
    **{f"report/01_prepare_data-{d}.html": f"data/{d}/01_prepare_data.ipynb" for d in study.datasets},
}
for folder, run in RUNS.items():
    name = f"{run.dataset}-{run.arm}-seed{run.seed}"
    PAGES[f"report/02_pretrain-{name}.html"] = f"{folder}/02_pretrain.ipynb"
    for protocol in run.protocols:
        PAGES[f"report/03_evaluate-{name}-{protocol}.html"] = f"{folder}/{protocol}/03_evaluate.ipynb"

shown_arm = study.showcase or study.arms[-1]
showcase = f"-{shown_arm}-seed{study.seeds[0]}"
shown = [page for page in PAGES if "-seed" not in page or f"{showcase}." in page or f"{showcase}-" in page]
linked = " ".join(quoted(Path(page).name) for page in [*shown, "methods.html"])

EXPLORED = {"report/05_explore.html": "explore/05_explore.ipynb"}  # on request alone: it needs the data
explored = dict(dataset=study.pretrained[0], arm=shown_arm, seed=study.seeds[0])


wildcard_constraints:
    dataset="[^/]+",
    arm="[^/]+",
    seed=r"-?\d+",
    protocol="[^/]+",


localrules:
    all,
    pages,
    page,
    methods,


def data_unless_done(wildcards):
    """Prepared data, for steps that have to run: data that are made now must not put others out of date."""
    protocol = wildcards.get("protocol", "")
    done = is_done(Path(RESULTS.format(**wildcards)) / protocol)
    return [] if done else f"data/{target(wildcards.dataset, protocol)}/card.json"


def needed_encoder(wildcards):
    """The encoder of another arm that this one learns from, if any."""
    return encoder_of(get_arm(wildcards.arm).needs, wildcards)


def source_encoder(wildcards):
    """The encoder of another arm on which attacks are made that are tried on this one, if any."""
    source = RUNS[RESULTS.format(**wildcards)].attack_source
    if source and method(wildcards.protocol) != "slf":  # fine-tunes, and with that stores scores
        return [RESULTS.format(**{**wildcards, "arm": source}) + f"/{wildcards.protocol}/scores.parquet"]
    return encoder_of(source, wildcards)


def encoder_of(needed, wildcards):
    return [RESULTS.format(dataset=wildcards.dataset, arm=needed, seed=wildcards.seed) + "/encoder.safetensors"] if needed else []


# Every committed result by name: a newer report must not hide a deleted one.
rule all:
    input:
        expand("{run}/{file}", run=RUNS, file=["encoder.json", "history.jsonl", "provenance.json"]),
        expand("{run}/{file}", run=EVALUATIONS, file=["scores.parquet", "evaluation.json", "provenance.json"]),
        expand("tables/{table}.csv", table=TABLES),
        "tables/provenance.json",
        shown,
        "report/methods.html",


# A page for every run, on request.
rule pages:
    input:
        list(PAGES),
        "report/methods.html",


rule prepare:
    input:
        "data/{dataset}/run.json",
    output:
        expand("data/{{dataset}}/{file}", file=PREPARED),
        "data/{dataset}/provenance.json",
        notebook="data/{dataset}/01_prepare_data.ipynb",
    resources:
        **study.asked("prepare"),
    shell:
        run_notebook + "01_prepare_data.ipynb {output.notebook} " + parameters + " dataset={wildcards.dataset}"


rule pretrain:
    priority: 1
    input:
        RESULTS + "/run.json",
        data_unless_done,
        needed_encoder,
    output:
        update(expand(RESULTS.replace("{", "{{").replace("}", "}}") + "/{file}", file=["encoder.safetensors", "encoder.json", "history.jsonl"])),
        done=update(RESULTS + "/provenance.json"),
        notebook=update(RESULTS + "/02_pretrain.ipynb"),
    threads: study.processes
    resources:
        **study.asked("pretrain"),
        jobs_per_gpu=0,  # see profiles/gpu
    shell:
        undone + on_its_gpu + run_notebook + "02_pretrain.ipynb {output.notebook} " + parameters
        + " dataset={wildcards.dataset} arm={wildcards.arm} seed={wildcards.seed}"


rule evaluate:
    priority: 1
    input:
        RESULTS + "/{protocol}/run.json",
        data_unless_done,
        RESULTS + "/encoder.safetensors",
        RESULTS + "/encoder.json",
        source_encoder,
    output:
        update(expand(RESULTS.replace("{", "{{").replace("}", "}}") + "/{{protocol}}/{file}", file=["scores.parquet", "head.safetensors", "evaluation.json"])),
        done=update(RESULTS + "/{protocol}/provenance.json"),
        notebook=update(RESULTS + "/{protocol}/03_evaluate.ipynb"),
    resources:
        **study.asked("evaluate"),
        jobs_per_gpu=0,  # see profiles/gpu
    shell:
        undone + on_its_gpu + run_notebook + "03_evaluate.ipynb {output.notebook} " + parameters
        + " dataset={wildcards.dataset} arm={wildcards.arm} seed={wildcards.seed} protocol={wildcards.protocol}"


rule figures:
    priority: 1
    input:
        "tables/run.json",
        expand("{run}/scores.parquet", run=EVALUATIONS),
    output:
        update(expand("tables/{table}.csv", table=TABLES)),
        done=update("tables/provenance.json"),
        notebook=update("tables/04_figures.ipynb"),
    resources:
        **study.asked("figures"),
    shell:
        undone + run_notebook + "04_figures.ipynb {output.notebook} " + parameters


# One ECG of the run that the report shows.
rule explore:
    input:
        RESULTS.format(**explored) + "/slf/scores.parquet",
    output:
        *EXPLORED.values(),
    resources:
        **study.asked("evaluate"),
        jobs_per_gpu=0,  # see profiles/gpu
    shell:
        on_its_gpu + run_notebook + "05_explore.ipynb {output} " + parameters
        + "".join(f" {quoted(name)}={quoted(value)}" for name, value in explored.items())


rule page:
    input:
        lambda wildcards: {**PAGES, **EXPLORED}[f"report/{wildcards.page}.html"],
    output:
        update("report/{page}.html"),
    wildcard_constraints:
        page="0[1-3]_.+|05_explore|index",
    params:
        title=study.title,
        synthetic="--synthetic" if is_synthetic(study) else "",
    shell:
        f"{python} -m ecgstudy.running.html {{input}} {{output}} {linked} --title {{params.title:q}} {{params.synthetic}}"


rule methods:
    output:
        update("report/methods.html"),
    params:
        title=study.title,
    shell:
        f"{python} -m ecgstudy.running.html methods {{output}} {linked} --title {{params.title:q}}"
