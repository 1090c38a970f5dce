"""From stored scores to the study's tables: no model, no GPU, the same bytes each time."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from ecgstudy.analysis import statistics as st
from ecgstudy.analysis.claims import claimed_pairs, judge
from ecgstudy.analysis.contrasts import (
    AGES,
    PRIMARY,
    WHERE,
    Group,
    combined,
    grouped,
    is_headline,
    masking_flag,
    mean_macro,
    place,
)
from ecgstudy.analysis.effects import effect_weights, pull_and_push
from ecgstudy.analysis.scores import Scores, ScoreSet, read_scores
from ecgstudy.analysis.sensitivity import contrast_sensitivity, sensitivity
from ecgstudy.files import whole_files
from ecgstudy.params import target
from ecgstudy.pretraining.suffixes import control_pairs
from ecgstudy.study import ENSEMBLE, Paths, Run, Study

EQUAL_CLEAN = -0.01
"""Clean AUROC counts as equal when the difference's lower bound is above this."""
CHANCE = 0.5
UNIDENTIFIED = "record-"
"""How names of patients begin that are records without a patient id (`ecgstudy.datasets.ptbxl`)."""
ALL = "all"

RUN = ["dataset", "arm", "seed", "protocol"]
SET = [*RUN, "attack", "epsilon_mv"]
COLUMNS = {
    "robust_auroc": [*SET, "auroc_shared", "auroc_label", "ci_low", "ci_high", "n_records", "n_patients",
                     "masking_ok", "labels_absent", "severity", "n_unidentified"],
    "per_class": [*SET, "class", "auroc", "auroc_label", "auprc", "positives", "patients", "largest_share",
                  "dominated", "masking_ok", "severity"],
    "subgroups": [*SET, "group", "value", "auroc_shared", "labels", "n_records", "n_patients", "masking_ok"],
    "contrasts": [*WHERE, "adaptive", "standard", "delta", "ci_low", "ci_high", "p", "p_holm", "family",
                  "headline", "se", "df", "mde", "seeds", "beyond_seeds", "error_reduction", "clean_delta",
                  "clean_ci_low", "equal_clean", "masking_ok", "severity", "seed_list", "heavy",
                  "n_records", "joint_low", "joint_high"],
    "factor_effects": [*WHERE, "effect", "delta", "ci_low", "ci_high", "p", "se", "df", "mde", "seeds",
                       "beyond_seeds", "arms", "masking_ok", "severity", "design", "heavy", "n_records"],
    "masking_checks": [*RUN, "check", "value", "limit", "verdict"],
    "perturbations": [*RUN, "attack", "kind", "name", "share", "size", "masking_ok"],
    "cost": [*RUN, "training_seconds", "step_ms", "attack_steps_per_second", "peak_memory_mb", "parameters",
             "masking_ok"],
    "pretraining": ["dataset", "arm", "seed", "epochs", "loss", "positive_similarity", "negative_similarity",
                    "negatives", "effective_negatives"],
    "sensitivity": ["dataset", "arm", "protocol", "attack", "epsilon_mv", "variant", "auroc", "ci_low",
                    "ci_high", "note", "masking_ok"],
    "contrast_sensitivity": [*WHERE, "adaptive", "standard", "variant", "delta", "ci_low", "ci_high", "note",
                             "masking_ok"],
    "headline_check": [*WHERE, "auroc_shared", "seeds", "chosen", "in_params", "masking_ok"],
}  # fmt: skip


def _table(name: str, rows: list[dict]) -> pd.DataFrame:
    """Rows as a table with the columns of its contract, in their order, and any that `cost` adds."""
    extra = dict.fromkeys(
        k for row in rows for k in row if name == "cost" and k not in COLUMNS[name]
    )
    return pd.DataFrame(rows, columns=[*COLUMNS[name], *extra])


def _shared_and_label(
    scores: Scores,
) -> Iterator[tuple[dict, Group, str, list[ScoreSet], list[ScoreSet]]]:
    """(key columns, group, arm, shared sets, the label sets beside them or none) of every table row."""
    label = grouped(scores, view="label")
    for key, group in grouped(scores).items():
        for name, arm in group.items():
            own = label.get(key, {}).get(name, {})
            for seed in (*sorted(arm), ALL):
                sets = [arm[s] for s in (sorted(arm) if seed == ALL else [seed])]
                paired = (
                    sets
                    if key[2] == "none"
                    else [own[s.seed] for s in sets if s.seed in own]
                )
                columns = place(key) | {
                    "arm": name,
                    "seed": seed,
                    "masking_ok": masking_flag(sets),
                }
                yield (
                    columns,
                    group,
                    name,
                    sets,
                    paired if len(paired) == len(sets) else [],
                )


def robust_auroc(scores: Scores, confidence: float = 0.95) -> pd.DataFrame:
    """Macro AUROC, clean and under each attack, of each seed and of all; intervals as in `two_way_t`.

    The interval of one seed speaks of the patients only. `n_unidentified` of `n_patients` are records without
    a patient id, which stand for themselves.
    """
    rows = []
    for columns, group, arm, sets, paired in _shared_and_label(scores):
        found, _ = combined(group, {arm: 1.0}, confidence, [s.seed for s in sets])
        sample = sets[0].sample
        rows.append({
            **columns,
            "auroc_shared": found["delta"],
            "auroc_label": mean_macro(paired),
            "ci_low": np.maximum(found["ci_low"], 0),
            "ci_high": np.minimum(found["ci_high"], 1),
            "n_records": len(sample.y),
            "n_patients": len(sample.names),
            "labels_absent": sample.named(~sample.labels),
            "n_unidentified": sum(str(name).startswith(UNIDENTIFIED) for name in sample.names),
        })  # fmt: skip
    return _table("robust_auroc", rows)


def per_class(scores: Scores) -> pd.DataFrame:
    """AUROC and average precision of each class; `dominated` marks labels that hang on one patient."""
    rows = []
    for columns, _, _, sets, paired in _shared_and_label(scores):
        sample = sets[0].sample
        auroc = np.mean([s.auroc for s in sets], axis=0)
        auroc_label = (
            np.mean([s.auroc for s in paired], axis=0)
            if paired
            else np.full(len(auroc), np.nan)
        )
        auprc = np.mean([s.auprc for s in sets], axis=0)
        for c, name in enumerate(sample.classes):
            positive = sample.y[:, c] > 0
            held = {
                "class": name,
                "positives": int(positive.sum()),
                "patients": len(np.unique(sample.patients[positive])),
                "largest_share": sample.shares[c],
                "dominated": bool(sample.shares[c] > st.DOMINANCE),
            }
            rows.append(
                columns
                | held
                | {"auroc": auroc[c], "auroc_label": auroc_label[c], "auprc": auprc[c]}
            )
    return _table("per_class", rows)


def subgroups(scores: Scores, attack: str) -> pd.DataFrame:
    """Macro AUROC by age band and sex, clean and under `attack`; `labels` are those the subgroup defines."""
    rows = []
    for columns, _, _, sets, _ in _shared_and_label(scores):
        if columns["attack"] not in ("none", attack):
            continue
        sample = sets[0].sample
        for kind, value, mask in sample.subgroups(AGES):
            labels = st.defined_labels(sample.y[mask])
            member = {
                "group": kind,
                "value": value,
                "auroc_shared": np.mean([s.macro_of(mask) for s in sets]),
                "labels": sample.named(labels),
                "n_records": int(mask.sum()),
                "n_patients": len(np.unique(sample.patients[mask])),
            }
            rows.append(columns | member)
    return _table("subgroups", rows)


def contrasts(
    scores: Scores,
    pairs: list[tuple[str, str]],
    headline: dict[str, float],
    attack: str,
    confidence: float,
    primary: bool = True,
) -> pd.DataFrame:
    """Paired differences of macro AUROC (adaptive − standard), clean and under every attack.

    Parameters
    ----------
    pairs
        Exploratory pairs (adaptive, standard or control); the primary ones are added.
    headline, attack
        Headline ε in mV of each data set tested on, and the headline attack.
    primary
        Whether the study tests the primary family; otherwise all its contrasts are exploratory.
    """
    pairs = list(dict.fromkeys([*PRIMARY.items(), *pairs]))
    clean = {key[:2]: group for key, group in grouped(scores, attack="none").items()}
    rows = []
    for key, group in grouped(scores).items():
        for adaptive, standard in pairs:
            weights = {adaptive: 1.0, standard: -1.0}
            if (found := combined(group, weights, confidence)) is None:
                continue
            main = is_headline(key, headline, attack)
            first = (
                primary
                and main
                and key[1] == "slf"
                and PRIMARY.get(adaptive) == standard
            )
            errors = 1 - mean_macro([s for s in found[1] if s.arm == standard])
            row = (
                place(key)
                | found[0]
                | {"adaptive": adaptive, "standard": standard, "headline": main}
            )
            row["seed_list"] = " ".join(
                str(k) for k in sorted({s.seed for s in found[1]})
            )
            row["family"] = "primary" if first else "exploratory"
            row["n_records"] = len(found[1][0].sample.y)
            row["error_reduction"] = row["delta"] / errors if errors else np.nan
            if beside := combined(clean.get(key[:2], {}), weights, confidence):
                low = beside[0]["ci_low"]
                row |= {
                    "clean_delta": beside[0]["delta"],
                    "clean_ci_low": low,
                    "equal_clean": low > EQUAL_CLEAN,
                }
            rows.append(row)
    return as_family(_table("contrasts", rows), confidence)


def as_family(contrasts: pd.DataFrame, confidence: float) -> pd.DataFrame:
    """`contrasts` with what its primary rows say together: `p_holm`, `joint_low`, `joint_high` and `mde`.

    All joint intervals hold with `confidence` at once (Bonferroni). `mde` of these rows is what Holm's first
    step finds with 80 % power, at most 1, the largest difference of two AUROCs.
    """
    table = contrasts.copy()
    family = (table["family"] == "primary").to_numpy()
    table.loc[family, "p_holm"] = st.holm(table.loc[family, "p"].to_numpy(float))
    tested = table.index[family & table["se"].gt(0).to_numpy(bool)]
    level = 1 - (1 - confidence) / max(1, len(tested))
    for row in table.loc[tested].itertuples():
        t = row.df, row.heavy, row.seeds
        half = st.critical_ratio(level, *t) * row.se
        ends = np.clip([row.delta - half, row.delta + half], -1, 1)
        table.loc[row.Index, ["joint_low", "joint_high", "mde"]] = (
            *ends, min(1.0, st.detectable(row.se, level, *t)),
        )  # fmt: skip
    return table


def factor_effects(
    scores: Scores, factors: pd.DataFrame, confidence: float
) -> pd.DataFrame:
    """Least-squares effects of the arms' factors on macro AUROC, over the seeds common to all arms.

    `design` is ``"schemes"``, each weighting scheme a factor, or ``"kinds"``: adversary, pull and push.
    """
    designs = {"kinds": pull_and_push(factors), "schemes": factors}
    rows = []
    for key, group in grouped(scores).items():
        for design, table in designs.items():
            arms = [arm for arm in table.index if arm in group]
            effects = (
                effect_weights(table.loc[arms]) if len(arms) > 1 else table.iloc[:0]
            )
            for effect, weights in effects.iterrows():
                if found := combined(group, weights.to_dict(), confidence):
                    where = place(key) | {
                        "design": design,
                        "effect": effect,
                        "arms": len(arms),
                    }
                    rows.append(
                        where | found[0] | {"n_records": len(found[1][0].sample.y)}
                    )
    return _table("factor_effects", rows)


def masking_checks(scores: Scores) -> pd.DataFrame:
    """Every gradient-masking check of every evaluated model."""
    runs = (
        (dict(zip(RUN, run, strict=True)), e) for run, e in scores.evaluations.items()
    )
    return _table(
        "masking_checks",
        [run | check for run, e in runs for check in e.get("checks") or []],
    )


def perturbations(scores: Scores) -> pd.DataFrame:
    """What part of an ECG each attack uses, as `ecgstudy.evaluation.energy.profile` has it."""
    rows = [
        dict(zip(RUN, run, strict=True)) | row | {"masking_ok": e.get("masking_ok")}
        for run, e in scores.evaluations.items()
        for row in e.get("profiles") or []
    ]
    return _table("perturbations", rows)


def cost(scores: Scores) -> pd.DataFrame:
    """Seconds per stage and every other number that an evaluation measured, one row a run and protocol."""
    rows = []
    for run, evaluation in scores.evaluations.items():
        stages = {
            f"seconds_{name}": value
            for name, value in (evaluation.get("seconds") or {}).items()
        }
        numbers = {k: v for k, v in evaluation.items() if type(v) in (int, float)}
        numbers["masking_ok"] = evaluation.get("masking_ok")
        rows.append(dict(zip(RUN, run, strict=True)) | numbers | stages)
    return _table("cost", rows)


def pretraining(runs: Iterable[Run], paths: Paths) -> pd.DataFrame:
    """How each run's pretraining ended: loss, mean cosines and negatives an anchor, of its last epoch.

    With `effective_negatives` / `negatives` near 1 all negatives weigh alike, whatever the weighting.
    """
    rows = []
    for run in runs:
        path = paths.run(run.dataset, run.arm, run.seed) / "history.jsonl"
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        if lines:
            last = json.loads(lines[-1])
            which = {
                "dataset": run.dataset,
                "arm": run.arm,
                "seed": run.seed,
                "epochs": len(lines),
            }
            rows.append(
                {key: last[key] for key in COLUMNS["pretraining"] if key in last}
                | which
            )
    return _table("pretraining", rows)


def headline_check(
    scores: Scores, headline: dict[str, float], arm: str = "supervised"
) -> pd.DataFrame:
    """Which ε the rule picks on validation records, beside the one that the params file names.

    The smallest ε at which the seed-mean shared AUROC of `arm` under PGD margin is at most 0.5, else the
    largest.
    """
    grids: dict[tuple, dict[float, list[ScoreSet]]] = {}
    for key, group in grouped(scores, "validation", attack="pgd-margin").items():
        if arm in group:
            grids.setdefault(key[:3], {})[key[3]] = list(group[arm].values())
    rows = []
    for key, grid in grids.items():
        pick = min(
            (e for e in grid if mean_macro(grid[e]) <= CHANCE), default=max(grid)
        )
        for epsilon, sets in grid.items():
            row = dict(zip(WHERE, (*key, epsilon), strict=True)) | {
                "auroc_shared": mean_macro(sets)
            }
            row |= {
                "seeds": len(sets),
                "masking_ok": masking_flag(sets),
                "chosen": epsilon == pick,
            }
            rows.append(row | {"in_params": epsilon == headline.get(target(*key[:2]))})
    return _table("headline_check", rows)


def write_tables(
    study: Study,
    paths: Paths,
    factors: pd.DataFrame,
    bases: dict[str, str],
    attack: str = ENSEMBLE,
) -> dict[str, pd.DataFrame]:
    """Compute every table of `study` from its stored scores and write ``tables/*.csv``, each whole.

    Parameters
    ----------
    factors
        Booleans, one row an arm (`ecgstudy.pretraining.suffixes.factor_table`).
    bases
        Adaptive arm → the arm it is compared with (`ecgstudy.pretraining.suffixes.bases`).
    attack
        Headline attack.

    Returns
    -------
    dict
        Name → table.
    """
    level = study.statistics.confidence
    headline = {
        name: options.headline_epsilon_mv for name, options in study.datasets.items()
    }
    scores, pairs = (
        read_scores(paths, study.runs()),
        [*bases.items(), *claimed_pairs(), *control_pairs(study.arms)],
    )
    by_arm = sensitivity(scores, headline, attack, study.statistics.resamples, level)
    by_contrast = contrast_sensitivity(scores, headline, attack, level)
    tables = {
        "robust_auroc": robust_auroc(scores, level),
        "per_class": per_class(scores),
        "subgroups": subgroups(scores, attack),
        "contrasts": contrasts(
            scores, pairs, headline, attack, level, study.statistics.primary
        ),
        "factor_effects": factor_effects(scores, factors, level),
        "masking_checks": masking_checks(scores),
        "perturbations": perturbations(scores),
        "cost": cost(scores),
        "pretraining": pretraining(study.runs(), paths),
        "sensitivity": _table("sensitivity", by_arm),
        "contrast_sensitivity": _table("contrast_sensitivity", by_contrast),
        "headline_check": headline_check(scores, headline),
    }
    tables["claims"] = judge(tables["contrasts"], tables["cost"], level)
    write_csv(tables, paths.tables)
    return tables


def write_csv(tables: dict[str, pd.DataFrame], folder: Path) -> None:
    """Write each table as ``<name>.csv``, whole, with the same bytes everywhere."""
    with whole_files() as new:
        for name, table in tables.items():
            partial = new(folder / f"{name}.csv")
            table.to_csv(
                partial,
                index=False,
                float_format="%.6g",
                lineterminator="\n",
                encoding="utf-8",
            )
