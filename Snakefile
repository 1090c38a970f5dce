# The grid of one study. Started by `python -m ecgstudy.workflow study params/NAME.yaml` (see the
# Makefile), which writes every step's run.json first; paths are relative to outputs/NAME.
#
# A step's only timed input is its run.json, which is newer than its outputs exactly when the step is
# out of date. Everything else is ancient(): must be there, whatever its time.

import sys
from pathlib import Path

from ecgstudy.study import ROOT, Paths, load_study

study = load_study(config["params"])
paths = Paths(study.study, Path("..").resolve())
run_notebook = f"{sys.executable} -m ecgstudy.workflow notebook {ROOT}/notebooks/"
parameters = f"study={config['params']}"
showcase = study.showcase or study.arms[-1]

PREPARED = ["card.json", "signals.npy", "labels.npy", "table.parquet"]
RESULTS = "runs/{dataset}/{arm}/seed{seed}"
GRID = dict(dataset=study.datasets, arm=study.arms, seed=study.seeds)
TABLES = "robust_auroc per_class subgroups contrasts factor_effects claims masking_checks cost sensitivity headline".split()


wildcard_constraints:
    dataset="[^/]+",
    arm="[^/]+",
    seed=r"-?\d+",
    protocol="[^/]+",


localrules:
    all,


# Every committed result by name: a newer report must not hide a deleted one.
rule all:
    input:
        expand(RESULTS + "/{file}", **GRID, file=["encoder.json", "history.jsonl", "provenance.json"]),
        expand(RESULTS + "/{protocol}/{file}", **GRID, protocol=study.protocols, file=["scores.parquet", "evaluation.json", "provenance.json"]),
        expand("tables/{table}.csv", table=TABLES),
        "tables/provenance.json",
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
    input:
        RESULTS + "/run.json",
        ancient("data/{dataset}/card.json"),
    output:
        expand(RESULTS.replace("{", "{{").replace("}", "}}") + "/{file}", file=["encoder.safetensors", "encoder.json", "history.jsonl", "provenance.json"]),
        notebook=RESULTS + "/02_pretrain.ipynb",
    shell:
        run_notebook + "02_pretrain.ipynb {output.notebook} " + parameters
        + " dataset={wildcards.dataset} arm={wildcards.arm} seed={wildcards.seed}"


rule evaluate:
    input:
        RESULTS + "/{protocol}/run.json",
        ancient("data/{dataset}/card.json"),
        ancient(RESULTS + "/encoder.safetensors"),
        ancient(RESULTS + "/encoder.json"),
    output:
        expand(RESULTS.replace("{", "{{").replace("}", "}}") + "/{{protocol}}/{file}", file=["scores.parquet", "head.safetensors", "evaluation.json", "provenance.json"]),
        notebook=RESULTS + "/{protocol}/03_evaluate.ipynb",
    shell:
        run_notebook + "03_evaluate.ipynb {output.notebook} " + parameters
        + " dataset={wildcards.dataset} arm={wildcards.arm} seed={wildcards.seed} protocol={wildcards.protocol}"


rule figures:
    input:
        "tables/run.json",
        ancient(expand(RESULTS + "/{protocol}/scores.parquet", **GRID, protocol=study.protocols)),
    output:
        expand("tables/{table}.csv", table=TABLES),
        "tables/provenance.json",
        notebook="tables/04_figures.ipynb",
    shell:
        run_notebook + "04_figures.ipynb {output.notebook} " + parameters


def report_notebooks(wildcards):
    """01 of each data set, 02 and 03 of the showcased arm's first seed, 04; with runs=all every run's."""
    wanted = GRID if config.get("runs") == "all" else {**GRID, "arm": [showcase], "seed": study.seeds[:1]}
    return [
        *expand("data/{dataset}/01_prepare_data.ipynb", dataset=study.datasets),
        *expand(RESULTS + "/02_pretrain.ipynb", **wanted),
        *expand(RESULTS + "/{protocol}/03_evaluate.ipynb", **wanted, protocol=study.protocols),
        "tables/04_figures.ipynb",
    ]


rule report:
    input:
        "tables/provenance.json",
        ancient(report_notebooks),
    output:
        "report/index.html",
    params:
        notebooks=lambda wildcards: report_notebooks(wildcards),
    shell:
        f"{sys.executable} -m ecgstudy.workflow report {config['params']} " + "{params.notebooks}"
