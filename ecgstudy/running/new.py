"""Files to start a study of your own from, in any folder."""

import re
from pathlib import Path

from ecgstudy.errors import StudyError
from ecgstudy.files import write_text

PARAMS = """\
# A study of your own: `ecgstudy study {name}.yaml` runs it, its outputs go beside it.
# {name}.py is loaded with it. docs/extend.md shows data sets, encoders and attacks.
study: {name}
title: A weighting of my own, on simulated ECGs
datasets:
  builtin:  # or mitdb, ptbxl, or a data set of your own
    headline_epsilon_mv: 0.02  # `ecgstudy headline {name}.yaml` chooses it
    options: {{patients: 120, records_per_patient: 2}}
arms: [random, supervised, rocl, rocl-{name}]
seeds: [0]
encoder: {{name: resnet1d, options: {{size: small}}}}
views: {{crop_s: 5.0}}
training: {{epochs: 8, batch_size: 32, learning_rate: 0.003, attack_steps: 1}}
evaluation: {{steps: 10, label_steps: 5, max_records: 60, attacks: [noise, pgd-margin]}}
"""
PLUGIN = '''\
"""A weighting of your own, and an arm that uses it."""

from dataclasses import replace

import ecgstudy as es


@es.weighting("{name}")
def push_adversaries(similarity, pairs, weights, strength=0.5):
    """Adversarial views of other patients repel more than their clean views."""
    return weights.with_push(strength * pairs.candidates.adversarial[None, :])


@es.arm("rocl-{name}")
def rocl_{variable}():
    scheme = ("{name}", {{"strength": 0.5}})
    return replace(es.get_arm("rocl"), weighting=(scheme,), base="rocl")
'''


def write_templates(folder: Path) -> Path:
    """Write a params file and its plugin to a new folder; returns the params file.

    Raises
    ------
    StudyError
        When the folder is there already, or its name cannot be a study's.
    """
    name = folder.name
    if not re.fullmatch("[a-z][a-z0-9-]*", name):
        raise StudyError(
            f"{name!r} cannot be a study's name; use lower-case letters, digits and -"
        )
    if folder.exists():
        raise StudyError(f"{folder} exists already; choose another name")
    words = {"name": name, "variable": name.replace("-", "_")}
    write_text(folder / f"{name}.yaml", PARAMS.format(**words))
    write_text(folder / f"{name}.py", PLUGIN.format(**words))
    return folder / f"{name}.yaml"
