"""Checks for gradient masking of one evaluated model.

After Athalye et al. 2018 and Carlini et al. 2019. Six checks have limits. The share
of single samples whose gradient is 0 is for information: behind ReLUs and max-pooling
quiet stretches of an ECG may have none, which hinders an attack only where whole
records have none (Croce & Hein 2020 count records, too).
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Generator, Tensor

from ecgstudy.attacks.api import Budget
from ecgstudy.attacks.ball import Ball
from ecgstudy.attacks.named import get_attack
from ecgstudy.attacks.objectives import auroc_targets, signed_scores
from ecgstudy.evaluation.attack_run import AttackRun, is_l2, take_worst
from ecgstudy.evaluation.sample import macro_auroc, pick_evenly
from ecgstudy.params import BLACK_BOX, ENSEMBLE, split_leads

EXTREME_MV = 1.0
"""Extra budget at which a sound attack must have driven AUROC to about 0."""
NO_GRADIENT = ("transfer", *BLACK_BOX)
"""Attacks that never see the attacked model's gradient."""
NOT_APPLICABLE = {
    "check": "gradient masking",
    "value": None,
    "limit": None,
    "verdict": "not applicable",
}
"""The only check of a model without gradients."""


def check_masking(attack_run: AttackRun, headline_mv: float, seed: int) -> list[dict]:
    """Look for signs of gradient masking in an attacked model.

    Parameters
    ----------
    attack_run
        With the scores of the study's attacks at every ε.
    headline_mv
        Headline ε in mV.
    seed
        Of the checks' own attacks.

    Returns
    -------
    list of dict
        `check`, `value`, `limit`, `verdict` ("pass", "fail", or "no limit").
    """
    checks = []
    for name, value, limit in _measure(attack_run, headline_mv, seed):
        verdict = "no limit"
        if limit is not None:
            verdict = "pass" if value <= limit else "fail"
        check = {"check": name, "value": float(value), "limit": limit}
        checks.append({**check, "verdict": verdict})
    return checks


def _measure(
    attack_run: AttackRun, headline_mv: float, seed: int
) -> Iterator[tuple[str, float, float | None]]:
    """Name, value and limit of each check; they share one random stream in order."""
    options, labels, device = attack_run.options, attack_run.labels, attack_run.device
    stream = Generator(device).manual_seed(seed)
    rows = pick_evenly(labels, options.check_records)
    chosen = np.isin(np.arange(len(labels)), rows.cpu())
    few = replace(attack_run, records=attack_run.records.select(chosen))

    clean = attack_run.scores("none", 0.0)
    curve = [macro_auroc(labels, clean)]
    for epsilon_mv in sorted(options.epsilons_mv):
        _, worst = attack_run.choose_worst(options.ensemble, epsilon_mv)
        curve.append(macro_auroc(labels, worst))
    yield "largest rise of AUROC with ε", max(*np.diff(curve), 0.0), 0.005

    extreme = few.attack_each_label(EXTREME_MV, stream)
    extreme = take_worst([clean[rows], extreme], few.labels)
    name = f"per-label AUROC at {EXTREME_MV:g} mV"
    yield name, macro_auroc(few.labels, extreme), 0.05

    steps, restarts = options.check_steps, options.check_restarts
    budget = attack_run.budget(headline_mv, steps=steps, restarts=restarts)
    longer = macro_auroc(few.labels, _score_under("pgd-margin", few, budget, stream))
    gain = (
        macro_auroc(few.labels, attack_run.scores(ENSEMBLE, headline_mv)[rows]) - longer
    )
    name = f"gain of PGD-{steps} with {restarts} restarts over the ensemble"
    yield name, max(gain, 0.0), 0.02

    followed, blind = [], []
    for name in attack_run.names(further=True):
        known, _ = split_leads(name)
        if known in NO_GRADIENT:
            blind.append(attack_run.scores(name, headline_mv))
        elif known != "noise" and not is_l2(name):
            followed.append(attack_run.scores(name, headline_mv))
    if not blind:
        scores = torch.full_like(labels, torch.nan)
        scores[rows] = _score_under(
            "square", few, attack_run.budget(headline_mv), stream
        )
        blind.append(scores)
    gains = [0.0]
    for scores in blind:
        seen = ~scores.isnan().any(1)  # the records that it was run on
        best = min(macro_auroc(labels[seen], other[seen]) for other in followed)
        gains.append(best - macro_auroc(labels[seen], scores[seen]))
    yield "gain of black-box over gradient attacks", max(gains), 0.01

    records, samples = zero_gradients(attack_run)
    yield "share of records without input gradient", records, 0.01
    yield "share of samples without input gradient", samples, None

    noise = Ball(headline_mv).draw(attack_run.signals, stream)
    change = abs(
        macro_auroc(labels, attack_run.score(attack_run.signals + noise)) - curve[0]
    )
    yield "change of AUROC under noise of the headline ε", change, 0.02


def _score_under(
    attack: str, attack_run: AttackRun, budget: Budget, stream: Generator
) -> Tensor:
    delta = get_attack(attack)(
        attack_run.victim, attack_run.signals, attack_run.labels, budget, stream
    )
    return attack_run.score(attack_run.signals + delta)


def zero_gradients(attack_run: AttackRun) -> tuple[float, float]:
    """Shares of records and of samples whose gradient of the margin is exactly 0."""
    targets, zero = auroc_targets(attack_run.labels), []
    for rows in torch.arange(len(targets)).split(attack_run.options.batch_size):
        leaf = attack_run.signals[rows].clone().requires_grad_()
        value = signed_scores(attack_run.victim.scores(leaf), targets[rows]).sum()
        (gradient,) = torch.autograd.grad(value, leaf)
        zero.append(gradient == 0)
    zero = torch.cat(zero)
    return float(zero.flatten(1).all(1).float().mean()), float(zero.float().mean())
