"""From stored scores to a study's tables: no model, the same bytes each time."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ecgstudy.analysis import statistics as st
from ecgstudy.analysis.claims import claimed_pairs, judge_claims
from ecgstudy.analysis.columns import COLUMNS, as_table
from ecgstudy.analysis.contrasts import (
    PRIMARY,
    combine,
    effect_weights,
    estimate_arm,
    group_scores,
    masking_flag,
    mean_macro,
    pair_by_seed,
    pull_and_push,
    subgroups,
)
from ecgstudy.analysis.scores import Scores, read_scores
from ecgstudy.analysis.sensitivity import sensitivity
from ecgstudy.analysis.verdict import adjust_family, judge_family
from ecgstudy.files import write_result
from ecgstudy.pretraining.suffixes import bases, control_pairs, factor_table
from ecgstudy.study import ENSEMBLE, Paths, Run, Study

EQUAL_CLEAN = -0.01
"""Clean AUROC counts as equal when the difference's lower bound is above this."""
CHANCE = 0.5
UNIDENTIFIED = "record-"
"""Prefix of the ids of patients that are records without a patient id."""
RUN = ["dataset", "arm", "seed", "protocol"]


def _each_arm(scores):
    """Of each arm under each attack, every seed and all: columns, sets, label sets.

    Clean sets are their own label sets; there are none where a seed lacks them.
    """
    for place, group in group_scores(scores).items():
        for arm in group:
            (whole,) = pair_by_seed(group, [arm])
            for seed, sets in [*((s.seed, [s]) for s in whole), ("all", whole)]:
                columns = {**place._asdict(), "arm": arm, "seed": seed}
                columns["masking_ok"] = masking_flag(sets)
                paired = sets
                if place.attack != "none":
                    paired = [scores.other(s, view="label") for s in sets]
                yield columns, sets, paired if all(paired) else []


def robust_auroc(scores: Scores, confidence: float = 0.95) -> pd.DataFrame:
    """Macro AUROC, clean and under each attack, of each seed and of all.

    Intervals are those of `statistics.arm_interval`; that of one seed covers the
    patients only. `n_unidentified` patients are records without a patient id.
    """
    rows = []
    for columns, sets, paired in _each_arm(scores):
        found, sample = estimate_arm(sets, confidence), sets[0]
        unidentified = [str(name).startswith(UNIDENTIFIED) for name in sample.names]
        row = {
            **columns,
            **found,
            "auroc_shared": found["auroc"],
            "auroc_label": mean_macro(paired),
            "n_records": len(sample.table),
            "n_patients": len(sample.names),
            "labels_absent": sample.named(~sample.labels),
            "n_unidentified": sum(unidentified),
        }
        rows.append(row)
    return as_table("robust_auroc", rows)


def per_class(scores: Scores) -> pd.DataFrame:
    """AUROC and AUPRC of each class; `dominated`: most positives are one patient's."""
    rows = []
    for columns, sets, paired in _each_arm(scores):
        sample = sets[0]
        positive = sample.y > 0
        by_label = [s.auroc for s in paired]
        values = {
            **columns,
            "class": sample.classes,
            "auroc": np.mean([s.auroc for s in sets], axis=0),
            "auroc_label": np.mean(by_label, axis=0) if by_label else np.nan,
            "auprc": np.mean([s.auprc for s in sets], axis=0),
            "positives": positive.sum(axis=0),
            "patients": [len(np.unique(sample.patients[p])) for p in positive.T],
            "largest_share": sample.shares,
            "dominated": sample.shares > st.DOMINANCE,
        }
        rows += pd.DataFrame(values).to_dict("records")
    return as_table("per_class", rows)


def subgroup_auroc(scores: Scores) -> pd.DataFrame:
    """Macro AUROC by age band and sex, clean and under the ensemble.

    `labels` are those that the subgroup defines.
    """
    rows = []
    for columns, sets, _ in _each_arm(scores):
        if columns["attack"] not in ("none", ENSEMBLE):
            continue
        for kind, value, mask in subgroups(sets[0]):
            parts = [s.part(mask) for s in sets]
            sample = parts[0]
            row = {
                **columns,
                "group": kind,
                "value": value,
                "auroc_shared": mean_macro(parts),
                "labels": sample.named(sample.labels),
                "n_records": len(sample.table),
                "n_patients": len(sample.names),
            }
            rows.append(row)
    return as_table("subgroups", rows)


def contrasts(
    scores: Scores,
    pairs: Sequence[tuple[str, str]],
    confidence: float,
    primary: bool = True,
) -> pd.DataFrame:
    """Paired differences of macro AUROC (adaptive − standard), clean and attacked.

    Parameters
    ----------
    scores : Scores
        Of `read_scores`.
    pairs : sequence of tuple
        Exploratory pairs (adaptive, standard or control); the planned ones are added.
    confidence : float
        Level of the intervals.
    primary : bool
        Whether the study tests the primary family; otherwise all is exploratory.
    """
    rows = []
    for place, group in group_scores(scores).items():
        outcome = place.is_headline or place.attack == "none"
        in_family = primary and outcome and place.protocol == "slf"
        for pair in dict.fromkeys([*PRIMARY.items(), *pairs]):
            sets = pair_by_seed(group, pair)
            if not sets.size:
                continue
            planned = in_family and pair in PRIMARY.items()
            found = combine(sets, [1, -1], confidence)
            errors = 1 - mean_macro(sets[1])
            row = {
                **place._asdict(),
                **found,
                "adaptive": pair[0],
                "standard": pair[1],
                "headline": place.is_headline,
                "family": "primary" if planned else "exploratory",
                "error_reduction": found["delta"] / (errors or np.nan),
            }
            rows.append(row)
    table = adjust_family(as_table("contrasts", rows), confidence)
    run = ["dataset", "protocol", "adaptive", "standard"]
    clean = table[table["attack"] == "none"].set_index(run)[["delta", "ci_low"]]
    beside = clean.reindex(pd.MultiIndex.from_frame(table[run])).to_numpy(float)
    table[["clean_delta", "clean_ci_low"]] = beside
    return table.assign(equal_clean=table["clean_ci_low"] > EQUAL_CLEAN)


def factor_effects(
    scores: Scores, factors: pd.DataFrame, confidence: float
) -> pd.DataFrame:
    """Least-squares effects of the arms' factors on macro AUROC.

    Over the seeds common to all arms. `design` is ``"schemes"``, each weighting scheme
    a factor, or ``"kinds"``: adversary, pull and push.

    Parameters
    ----------
    scores : Scores
        Of `read_scores`.
    factors : pd.DataFrame
        Booleans, one row an arm.
    confidence : float
        Level of the intervals.
    """
    designs = {"kinds": pull_and_push(factors), "schemes": factors}
    rows = []
    for place, group in group_scores(scores).items():
        for design, table in designs.items():
            table = table.loc[[arm for arm in table.index if arm in group]]
            sets = pair_by_seed(group, table.index)
            if len(table) < 2 or not sets.size:
                continue
            where = {**place._asdict(), "design": design, "arms": len(table)}
            for effect, weights in effect_weights(table).iterrows():
                found = combine(sets, weights, confidence)
                rows.append({**where, "effect": effect, **found})
    return as_table("factor_effects", rows)


def _each_evaluation(scores):
    """Of each evaluated run: columns that name it, and its evaluation."""
    for run, evaluation in scores.evaluations.items():
        where = dict(zip(RUN, run, strict=True))
        yield {**where, "masking_ok": evaluation.get("masking_ok")}, evaluation


def _of_evaluations(scores, name, key):
    """Rows that each evaluation lists under `key`, with the run they are of."""
    rows = []
    for where, evaluation in _each_evaluation(scores):
        rows += [{**where, **row} for row in evaluation.get(key) or []]
    return as_table(name, rows)


def masking_checks(scores: Scores) -> pd.DataFrame:
    """Every gradient-masking check of every evaluated model."""
    return _of_evaluations(scores, "masking_checks", "checks")


def perturbations(scores: Scores) -> pd.DataFrame:
    """Where the energy of each attack lies: frequency band, part of the beat, lead."""
    return _of_evaluations(scores, "perturbations", "profiles")


def cost(scores: Scores) -> pd.DataFrame:
    """Seconds per stage and every other number that an evaluation measured."""
    rows = []
    for where, evaluation in _each_evaluation(scores):
        seconds = evaluation.get("seconds") or {}
        numbers = {k: v for k, v in evaluation.items() if type(v) in (int, float)}
        stages = {f"seconds_{stage}": value for stage, value in seconds.items()}
        rows.append({**where, **numbers, **stages})
    table = pd.DataFrame(rows)
    columns = pd.Index(COLUMNS["cost"]).union(table.columns, sort=False)
    return table.reindex(columns=columns)


def pretraining(runs: Iterable[Run], paths: Paths) -> pd.DataFrame:
    """How each pretraining ended: loss, mean cosines and negatives, of its last epoch.

    With `effective_negatives` / `negatives` near 1 all negatives have the same weight,
    whatever the weighting.
    """
    rows = []
    for run in runs:
        path = paths.run(run.dataset, run.arm, run.seed) / "history.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        if lines:
            where = {"dataset": run.dataset, "arm": run.arm, "seed": run.seed}
            rows.append({**json.loads(lines[-1]), **where, "epochs": len(lines)})
    return as_table("pretraining", rows)


def headline_check(scores: Scores, arm: str = "supervised") -> pd.DataFrame:
    """Which ε the rule picks on validation records, and which one the params file has.

    The rule: the smallest ε at which the seed-mean shared AUROC of `arm` under PGD with
    the margin objective is at most 0.5, else the largest.
    """
    rows = []
    for place, group in group_scores(scores, "validation", attack="pgd-margin").items():
        sets = pair_by_seed(group, [arm]).ravel()
        if sets.size:
            row = {
                **place._asdict(),
                "auroc_shared": mean_macro(sets),
                "seeds": len(sets),
                "masking_ok": masking_flag(sets),
                "in_params": place.epsilon_mv == place.headline_mv,
            }
            rows.append(row)
    table = as_table("headline_check", rows)
    where = [table["dataset"], table["protocol"]]
    at_chance = table["epsilon_mv"].where(table["auroc_shared"] <= CHANCE)
    largest = table.groupby(where, sort=False)["epsilon_mv"].transform("max")
    pick = at_chance.groupby(where, sort=False).transform("min").fillna(largest)
    return table.assign(chosen=table["epsilon_mv"] == pick)


def write_tables(study: Study, paths: Paths) -> dict[str, pd.DataFrame]:
    """Compute every table of `study` from its stored scores; write ``tables/*.csv``.

    Returns
    -------
    dict
        Name → table.
    """
    level = study.statistics.confidence
    scores = read_scores(paths, study.runs())
    pairs = [*bases(study.arms).items(), *claimed_pairs(), *control_pairs(study.arms)]
    tables = {
        "robust_auroc": robust_auroc(scores, level),
        "per_class": per_class(scores),
        "subgroups": subgroup_auroc(scores),
        "contrasts": contrasts(scores, pairs, level, study.statistics.primary),
        "factor_effects": factor_effects(scores, factor_table(study.arms), level),
        "masking_checks": masking_checks(scores),
        "perturbations": perturbations(scores),
        "cost": cost(scores),
        "pretraining": pretraining(study.runs(), paths),
        **sensitivity(scores, study.statistics.resamples, level),
        "headline_check": headline_check(scores),
    }
    tables["verdicts"] = judge_family(tables["contrasts"], level)
    claims, evidence = judge_claims(tables["contrasts"], tables["cost"], level)
    tables |= {"claims": claims, "claim_evidence": evidence}
    write_csv(tables, paths.tables)
    return tables


def write_csv(tables: dict[str, pd.DataFrame], folder: Path) -> None:
    """Write each table as ``<name>.csv``, whole, with the same bytes everywhere."""
    look = {"float_format": "%.6g", "lineterminator": "\n", "encoding": "utf-8"}
    with write_result(folder) as new:
        for name, table in tables.items():
            table.to_csv(new(f"{name}.csv"), index=False, **look)
