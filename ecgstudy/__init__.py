"""Does adaptive weighting make contrastively pretrained ECG encoders more robust?

``import ecgstudy as es`` gives all that notebooks and users need; what stands behind a
name is imported when it is first used, so that reading a params file imports no torch.
"""

from __future__ import annotations  # `make doctor` runs on Python 3.9 too

from importlib import import_module

__version__ = "0.2.0"

_HOMES = {
    "load_study": "api",
    "Study": "api",
    "Run": "api",
    "check_parameters": "api",
    "weighting": "api",
    "arm": "api",
    "encoder": "api",
    "dataset": "api",
    "attack": "api",
    "corruption": "api",
    "StudyError": "errors",
    "EcgRecords": "records",
    "count_classes": "records",
    "answer": "plots.tables_html",
    "list_tables": "plots.tables_html",
    "select_headline": "plots.tables_html",
    "show_table": "plots.tables_html",
    "summarise_limits": "plots.tables_html",
    "from_arrays": "datasets.custom",
    "from_wfdb": "datasets.custom",
    "load_encoder": "models.checkpoints",
    "load_classifier": "models.checkpoints",
    "ConvNorm": "models.layers",
    "scores_problem": "attacks.named",
    "get_arm": "pretraining.suffixes",
    "Adversary": "pretraining.arms",
    "Arm": "pretraining.arms",
    "Loss": "pretraining.arms",
}
"""Public name → the module it comes from."""
_MODULES = {"plots": "plots", "tables": "analysis.tables"}
"""Public modules."""

__all__ = ["__version__", *_HOMES, *_MODULES]


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(import_module(f"ecgstudy.{_HOMES[name]}"), name)
    if name in _MODULES:
        return import_module(f"ecgstudy.{_MODULES[name]}")
    raise AttributeError(f"module 'ecgstudy' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
