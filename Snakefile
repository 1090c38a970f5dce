# The grid of one study. Started by `python -m ecgstudy.workflow study params/NAME.yaml` (see the
# Makefile), which writes every step's run.json first; paths are relative to outputs/NAME.
#
# Whether a step is out of date is decided by content, not by files' times: the workflow compares the
# stamps of what is asked for and what was done, and sets the times of run.json and of the files that
# steps hand on accordingly.

import sys
from pathlib import Path

from ecgstudy.factors import get_arm
from ecgstudy.datasets import is_synthetic
from ecgstudy.provenance import is_done
from ecgstudy.study import ROOT, Run, load_study

study = load_study(ROOT / config["params"])
run_notebook = f"{sys.executable} -m ecgstudy.notebooks {ROOT}/notebooks/"
parameters = f"study={config['params']}"

PREPARED = ["card.json", "signals.npy", "labels.npy", "table.parquet"]
RESULTS = "runs/{dataset}/{arm}/seed{seed}"
GRID = dict(dataset=study.datasets, arm=study.arms, seed=study.seeds)
TABLES = "robust_auroc per_class subgroups contrasts factor_effects claims masking_checks perturbations cost sensitivity headline_check".split()

# Report page → executed notebook. The report shows those of one run; `make report RUNS=1` all of them.
PAGES = {
    **{f"report/01_prepare_data-{d}.html": f"data/{d}/01_prepare_data.ipynb" for d in study.datasets},
    "report/04_figures.html": "tables/04_figures.ipynb",
}
for run in study.runs():
    name, folder = f"{run.dataset}-{run.arm}-seed{run.seed}", RESULTS.format(**vars(run))
    PAGES[f"report/02_pretrain-{name}.html"] = f"{folder}/02_pretrain.ipynb"
    for protocol in study.protocols:
        PAGES[f"report/03_evaluate-{name}-{protocol}.html"] = f"{folder}/{protocol}/03_evaluate.ipynb"

showcase = f"-{study.showcase or study.arms[-1]}-seed{study.seeds[0]}"
shown = sorted(page for page in PAGES if "-seed" not in page or f"{showcase}." in page or f"{showcase}-" in page)


wildcard_constraints:
    dataset="[^/]+",
    arm="[^/]+",
    seed=r"-?\d+",
    protocol="[^/]+",


localrules:
    all,


def data_unless_done(wildcards):
    """Prepared data, for steps that have to run: data that are made now must not put others out of date."""
    folder = RESULTS.format(**wildcards) + (f"/{wildcards.protocol}" if "protocol" in wildcards.keys() else "")
    return [] if is_done(Path(folder)) else f"data/{wildcards.dataset}/card.json"


def needed_encoder(wildcards):
    """The encoder of another arm that this one learns from, if any."""
    return encoder_of(get_arm(wildcards.arm).needs, wildcards)


def source_encoder(wildcards):
    """The encoder of another arm on which attacks are made that are tried on this one, if any."""
    run = Run(study, wildcards.dataset, wildcards.arm, int(wildcards.seed))
    return encoder_of(run.attack_source, wildcards)


def encoder_of(needed, wildcards):
    return [RESULTS.format(dataset=wildcards.dataset, arm=needed, seed=wildcards.seed) + "/encoder.safetensors"] if needed else []


# Every committed result by name: a newer report must not hide a deleted one.
rule all:
    input:
        expand(RESULTS + "/{file}", **GRID, file=["encoder.json", "history.jsonl", "provenance.json"]),
        expand(RESULTS + "/{protocol}/{file}", **GRID, protocol=study.protocols, file=["scores.parquet", "evaluation.json", "provenance.json"]),
        expand("tables/{table}.csv", table=TABLES),
        "tables/provenance.json",
        shown,
        "report/index.html",


# A page for every run, on request.
rule pages:
    input:
        list(PAGES),
        "report/index.html",


rule prepare:
    input:
        "data/{dataset}/run.json",
    output:
        expand("data/{{dataset}}/{file}", file=PREPARED),
        "data/{dataset}/provenance.json",
        notebook="data/{dataset}/01_prepare_data.ipynb",
    shell:
        run_notebook + "01_prepare_data.ipynb {output.notebook} " + parameters + " dataset={wildcards.dataset}"


rule pretrain:
    priority: 1
    input:
        RESULTS + "/run.json",
        data_unless_done,
        needed_encoder,
    output:
        expand(RESULTS.replace("{", "{{").replace("}", "}}") + "/{file}", file=["encoder.safetensors", "encoder.json", "history.jsonl", "provenance.json"]),
        notebook=RESULTS + "/02_pretrain.ipynb",
    shell:
        run_notebook + "02_pretrain.ipynb {output.notebook} " + parameters
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
        expand(RESULTS.replace("{", "{{").replace("}", "}}") + "/{{protocol}}/{file}", file=["scores.parquet", "head.safetensors", "evaluation.json", "provenance.json"]),
        notebook=RESULTS + "/{protocol}/03_evaluate.ipynb",
    shell:
        run_notebook + "03_evaluate.ipynb {output.notebook} " + parameters
        + " dataset={wildcards.dataset} arm={wildcards.arm} seed={wildcards.seed} protocol={wildcards.protocol}"


rule figures:
    priority: 1
    input:
        "tables/run.json",
        expand(RESULTS + "/{protocol}/scores.parquet", **GRID, protocol=study.protocols),
    output:
        expand("tables/{table}.csv", table=TABLES),
        "tables/provenance.json",
        notebook="tables/04_figures.ipynb",
    shell:
        run_notebook + "04_figures.ipynb {output.notebook} " + parameters


rule page:
    input:
        lambda wildcards: PAGES[f"report/{wildcards.page}.html"],
    output:
        "report/{page}.html",
    wildcard_constraints:
        page="0[1-4]_.+",
    params:
        title=lambda wildcards: f"{study.title} · {wildcards.page}",
        synthetic="--synthetic" if is_synthetic(study) else "",
    shell:
        f"{sys.executable} -m ecgstudy.report page " + "{input} {output} --title {params.title:q} {params.synthetic}"


rule index:
    input:
        "tables/provenance.json",
        shown,
    output:
        "report/index.html",
    params:
        pages=" ".join(Path(page).name for page in shown),
    shell:
        f"{sys.executable} -m ecgstudy.report index {ROOT / config['params']} " + "{params.pages}"
