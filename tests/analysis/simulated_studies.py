"""Simulated studies whose true AUROCs are known, and how often analyses are right.

A score is shift · y + effects of patient, seed and both + noise of the record;
positives and negatives have effects of their own, so a positive and a negative differ
by a normal variable whoever they belong to, and an arm's expected AUROC is
Φ(shift / √(2 (1 + Σ sd²))), whatever the sizes of patients.

``python tests/analysis/simulated_studies.py`` prints the numbers of docs/methods.md.
"""

import numpy as np
from scipy.stats import norm

from ecgstudy import metrics
from ecgstudy.analysis import statistics as st
from ecgstudy.analysis.verdict import decide

PREVALENCE = (0.4, 0.25, 0.15)
SHIFTS = np.array([0.8, 0.5])
SAMPLES = {
    "22 even": [40] * 22,
    "1,000": [2] * 1000,
    "two dominate": [200] * 2 + [16] * 20,
}
SPREADS = {
    "patients": (0.7, 0.05, 0.1),
    "both": (0.5, 0.2, 0.3),
    "models": (0.3, 0.1, 0.5),
}
"""Standard deviations of the effects of patient, of seed, and of both (a model's)."""


def effects(rng, sd, seeds, arms, patients):
    """Normal, (seeds, arms, 2 kinds, labels, patients).

    A third of the variance each is an arm's own, common to labels, common to arms.
    """
    shapes = (arms, 2, len(PREVALENCE)), (arms, 2, 1), (1, 2, 1)
    parts = [rng.normal(size=(seeds, *shape, patients)) for shape in shapes]
    shared = sum(np.broadcast_to(part, parts[0].shape) for part in parts)
    return sd / np.sqrt(3) * shared


def simulate(rng, sizes, seeds, spread, shifts, own=0.5):
    """(y, patients, scores (arms, seeds, records, labels)).

    `own` is the share of the noise that is a model's; the rest is the record's.
    `shifts` are (arms,), or (arms, seeds) where seeds differ in them.
    """
    patients, arms = np.repeat(np.arange(len(sizes)), sizes), len(shifts)
    y = rng.random((len(patients), len(PREVALENCE))) < PREVALENCE
    shapes = (1, len(sizes)), (seeds, 1), (seeds, len(sizes))
    moved = sum(
        effects(rng, sd, s, arms, g) for sd, (s, g) in zip(spread, shapes, strict=True)
    )
    moved = np.where(y.T, moved[:, :, 0][..., patients], moved[:, :, 1][..., patients])
    of_records = np.sqrt(1 - own) * rng.normal(size=y.shape)
    of_models = np.sqrt(own) * rng.normal(size=(seeds, arms, *y.shape))
    each = np.broadcast_to(np.reshape(shifts, (arms, -1)), (arms, seeds)).T
    scores = moved.swapaxes(2, 3) + of_records + of_models + each[..., None, None] * y
    return y, patients, scores.swapaxes(0, 1)


def expected_auroc(shifts, spread):
    """Of records, patients and seeds that were never seen."""
    return norm.cdf(shifts / np.sqrt(2 * (1 + np.square(spread).sum())))


def shift_of(auroc, spread):
    """The shift that gives an expected AUROC."""
    return norm.ppf(auroc) * np.sqrt(2 * (1 + np.square(spread).sum()))


def fitted(y, patients, scores):
    """Macro AUROC (arms, seeds), and without each patient (arms, seeds, patients)."""
    whole = np.array([[metrics.auroc(y, one) for one in arm] for arm in scores])
    each = np.array(
        [[metrics.leave_one_out(y, one, patients) for one in arm] for arm in scores]
    )
    return whole.mean(axis=-1), st.macro_without_each(whole[:, :, None], each)


# --- One arm, with skewed seeds -------------------------------------------------------

SKEWED = {"normal": 0, "some worse": -1, "some better": 1}
"""Seed effects: normal, or exponential with the tail on this side."""
AUROCS = {0.98: 3.4, 0.91: 2.2, 0.69: 0.8, 0.23: -1.2, 0.02: -3.2}
"""Approximate AUROC → shift."""


def seed_effects(rng, tail, size, sd=0.3):
    """Effects of seeds on the shift, with mean 0."""
    if tail == 0:
        return sd * rng.normal(size=size)
    return tail * sd * (rng.exponential(size=size) - 1)


def arm_coverage(shift, tail, seeds, simulations, patients=300):
    """Share of 95 % intervals of one arm that hold its AUROC: two-way t, and ours."""
    rng, spread = (
        np.random.default_rng([seeds, tail + 1, round(100 * abs(shift))]),
        (
            0.4,
            0.0,
            0.3,
        ),
    )
    truth = expected_auroc(shift + seed_effects(rng, tail, 400_000), spread).mean()
    held = []
    for _ in range(simulations):
        shifts = shift + seed_effects(rng, tail, (1, seeds))
        y, of, scores = simulate(rng, [1] * patients, seeds, spread, shifts)
        whole, left_out = fitted(y, of, scores)
        df = st.patient_df(y, of)
        plain = st.two_way_t(whole[0], left_out[0], df)
        low, high = st.arm_interval(whole[0], left_out[0], df)
        held.append([plain.ci_low <= truth <= plain.ci_high, low <= truth <= high])
    return np.mean(held, axis=0)


# --- Verdicts of a family -------------------------------------------------------------

CLOSE = (0.03, 0.02, 0.05)
"""Spreads at which differences have about PTB-XL's standard errors (0.004, 3 seeds)."""
SIGNS = np.array([1, -1, 1, -1])


def family_verdicts(rng, seeds, difference, patients=400):
    """Verdicts on a study's eight tests: four arms and their base, robust and clean.

    Half of the arms are better than the base by `difference`, half are worse.
    """
    found = []
    for base in (0.75, 0.85):
        aurocs = base + difference * np.r_[0, SIGNS]
        shifts = shift_of(aurocs, CLOSE)
        y, of, scores = simulate(rng, [1] * patients, seeds, CLOSE, shifts, own=0.02)
        whole, left_out = fitted(y, of, scores)
        df, arms = st.patient_df(y, of), np.eye(5)
        weights = [arm - arms[0] for arm in arms[1:]]
        found += [st.combine_arms(whole, left_out, w, df) for w in weights]
    p = st.holm([one.p for one in found])
    within = [
        st.equivalence_p(i.value, i.se, st.MixedT(i.df, i.heavy, i.seeds), 0.01)
        for i in found
    ]
    tests = zip(found, p, st.holm(within), strict=True)
    return [decide(one.value, *both, one.beyond_seeds) for one, *both in tests]


def is_wrong(verdict, true_difference):
    """Whether a verdict says what is not so."""
    equal = "equivalent" in verdict or "by less" in verdict
    if equal and abs(true_difference) >= 0.01:
        return True
    if verdict.startswith("better"):
        return true_difference <= 0
    return verdict.startswith("worse") and true_difference >= 0


def verdict_rates(seeds, difference, simulations):
    """Shares of the tests by verdict, and of the families with any wrong one."""
    rng, said, wrong = np.random.default_rng([seeds, round(1000 * difference)]), [], []
    truth = difference * np.tile(SIGNS, 2)
    for _ in range(simulations):
        verdicts = family_verdicts(rng, seeds, difference)
        said += verdicts
        wrong.append(any(map(is_wrong, verdicts, truth)))
    kinds = {
        "different": np.mean([v.startswith(("better", "worse")) for v in said]),
        "equivalent": np.mean([v == "equivalent" or "by less" in v for v in said]),
        "undecided": np.mean([v == "undecided" for v in said]),
    }
    return kinds | {"any wrong": np.mean(wrong)}


def main(simulations=2000):
    """Print the tables of docs/methods.md."""
    print(
        "| true difference | seeds | better or worse | equivalent | undecided | wrong |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for difference in (0.0, 0.005, 0.01, 0.02):
        for seeds in (3, 5, 10):
            rates = verdict_rates(seeds, difference, simulations)
            cells = " | ".join(f"{rate:.3f}" for rate in rates.values())
            print(f"| ±{difference:g} | {seeds} | {cells} |", flush=True)
    print("\n| AUROC | seed effects | seeds | two-way t | this interval |")
    print("| --- | --- | --- | --- | --- |")
    for auroc, shift in AUROCS.items():
        for name, tail in SKEWED.items():
            for seeds in (3, 5):
                plain, ours = arm_coverage(shift, tail, seeds, 2 * simulations)
                cells = f"{seeds} | {plain:.3f} | {ours:.3f}"
                print(f"| {auroc} | {name} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
