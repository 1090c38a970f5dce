# `make help` lists the targets.
PYTHON ?= python3
STUDY ?= quick
WHERE = $(if $(PROFILE),--profile $(PROFILE)) $(if $(CORES),--cores $(CORES))
WORKERS = $(or $(CORES),$(shell $(PYTHON) -c "import os; print(len(os.sched_getaffinity(0)))" 2>/dev/null || echo 2))
# Absolute, in a checkout whose path may have blanks.
export ECGSTUDY_PLUGINS = $(shell for file in $(subst :, ,$(PLUGINS)); do case $$file in (/*) echo "$$file";; (*) echo "$$PWD/$$file";; esac; done | paste -s -d : -)
# ACTIVE=1: the environment that is active now (conda's, say) instead of .venv
ENV := $(if $(ACTIVE),,.venv/installed)
PY := $(if $(ACTIVE),python,.venv/bin/python)
RUN := $(PY) -m ecgstudy
.DEFAULT_GOAL := help
ifneq ($(filter %.yaml %.yml,$(MAKECMDGOALS)),)
$(error a study is named by STUDY=: make study STUDY=$(basename $(notdir $(firstword $(filter %.yaml %.yml,$(MAKECMDGOALS))))))
endif

.PHONY: help study figures report explore headline power bench doctor lab test test-fast test-slow lint

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

.venv/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'error: $(PYTHON) is Python ' + sys.version.split()[0] + '; 3.11 or later is needed: install it and say make PYTHON=python3.12, or whatever its name is')"
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --requirement requirements.lock
	.venv/bin/python -m pip install --quiet --no-deps --editable .
	touch $@

study: $(ENV)  ## run a study: data, pretraining, attacks, tables, report (STUDY=quick PROFILE=local|gpu|slurm CORES= PLUGINS=)
	$(RUN) study params/$(STUDY).yaml $(WHERE)

figures: $(ENV)  ## tables, figures and report again from the stored scores (STUDY=…)
	$(RUN) figures params/$(STUDY).yaml $(WHERE)

report: $(ENV)  ## the report again; RUNS=1 adds a page for every run (STUDY=…)
	$(RUN) report params/$(STUDY).yaml $(if $(RUNS),--runs)

explore: $(ENV)  ## 05_explore as a page: one ECG of the report's example run (STUDY=…)
	$(RUN) explore params/$(STUDY).yaml $(WHERE)

headline: $(ENV)  ## choose the headline ε of each data set from validation records (STUDY=…)
	$(RUN) headline params/$(STUDY).yaml $(WHERE)

power: $(ENV)  ## docs/power.md: seeds a confirmatory study needs, from the pilot's stored scores
	$(PY) tools/power_page.py params/mitdb.yaml params/ptbxl.yaml

bench: $(ENV)  ## speed and memory compared with other libraries, to outputs/bench (PARTS="steps loss"; needs an idle machine)
	OMP_NUM_THREADS=1 $(PY) -m benchmarks $(PARTS)

doctor:  ## check versions, device, data, disk: what is missing, and the command that fixes it
	@$(if $(ACTIVE)$(wildcard $(PY)),$(PY),$(PYTHON)) -m ecgstudy doctor

lab: $(ENV)  ## open the notebooks in JupyterLab
	$(PY) -m jupyter lab --notebook-dir=.

test-fast: $(ENV)  ## the tests to run after each edit (under a minute)
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n $(WORKERS) -m "not slow and not medium"

test: $(ENV)  ## the tests (minutes)
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n $(WORKERS)

test-slow: $(ENV)  ## the tests that take longer
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n $(WORKERS) -m slow

lint: $(ENV)  ## style and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check ecgstudy tests benchmarks tools
	$(PY) -m mypy
