"""Descriptions of figures say what the values say, and follow them when they change."""

import numpy as np
import pandas as pd
import pytest

from ecgstudy.plots import alt_texts

HEADLINE = {"one": 0.02, "two": 0.05}


def contrast(adaptive, delta, dataset="one", masking_ok=True, half=0.01):
    return {
        "dataset": dataset, "protocol": "slf", "attack": "ensemble", "epsilon_mv": HEADLINE[dataset],
        "adaptive": adaptive, "standard": "rocl", "delta": delta, "ci_low": delta - half,
        "ci_high": delta + half, "masking_ok": masking_ok,
    }  # fmt: skip


def results():
    """Two arms on two data sets; the second is 0.1 lower and fails a masking check."""
    values = {"none": 0.9, "fgsm": 0.7, "ensemble": 0.4}
    rows = [
        {"dataset": d, "arm": arm, "seed": seed, "protocol": "slf", "severity": np.nan, "attack": attack,
         "epsilon_mv": 0.0 if attack == "none" else HEADLINE[d], "auroc_shared": value - 0.1 * i - 0.01 * j,
         "masking_ok": i == 0}
        for j, d in enumerate(HEADLINE) for i, arm in enumerate(["rocl", "rocl-hn"])
        for seed in ("0", "all") for attack, value in values.items()
    ]  # fmt: skip
    other = rows[0] | {
        "seed": "all",
        "attack": "ensemble",
        "epsilon_mv": 0.1,
        "auroc_shared": 0.012,
    }
    corrupted = [
        row | {"attack": "muscle", "severity": level, "auroc_shared": row["auroc_shared"] - 0.1 * level}
        for row in rows if row["attack"] == "none" for level in (1.0, 2.0)
    ]  # fmt: skip
    return pd.DataFrame([*rows, other, *corrupted])


def test_a_forest_names_each_contrast_with_its_effect_and_interval():
    rows = [contrast("rocl-ip", -0.012), contrast("rocl-hn", 0.2, "two", False, np.nan)]
    assert alt_texts.forest(pd.DataFrame(rows)) == (
        "Differences in macro AUROC between two arms, with intervals. "
        "one, ensemble, ε = 0.02 mV, slf: rocl-ip − rocl −0.012 [−0.022, −0.002]. "
        "two, ensemble, ε = 0.05 mV, slf: rocl-hn − rocl +0.200 †."
    )
    assert (
        alt_texts.forest(pd.DataFrame(rows[:0]))
        == "No two arms of this study can be compared"
    )


def test_curves_tell_every_arms_auroc_clean_and_at_its_headline():
    assert alt_texts.clean_and_robust(
        results(), HEADLINE, "ensemble", intro="Curves"
    ) == (
        "Curves. one, clean and under ensemble at 0.02 mV: rocl 0.900 and 0.400; rocl-hn † 0.800 and 0.300. "
        "two, clean and under ensemble at 0.05 mV: rocl 0.890 and 0.390; rocl-hn † 0.790 and 0.290."
    )


def test_the_strongest_attack_on_each_arm_is_named():
    text = alt_texts.by_attack(results().query("dataset == 'one'"), HEADLINE)
    assert text == (
        "Macro AUROC of every arm under 2 attacks. one: rocl 0.900 clean, lowest 0.400 under ensemble; "
        "rocl-hn † 0.800 clean, lowest 0.300 under ensemble."
    )


def test_corruptions_tell_the_spread_of_arms_at_the_worst_severity():
    text = alt_texts.by_corruption(results().query("dataset == 'one'"))
    assert text.endswith(
        "one: clean 0.800 (rocl-hn) to 0.900 (rocl); muscle, severity 2 0.600 (rocl-hn) to 0.700 (rocl)."
    )


def test_energy_is_told_by_what_is_used_most_for_its_size():
    rows = [
        ("pgd", "band", "0–5 Hz", 0.2, 0.1),
        ("pgd", "lead", "II", 0.5, 0.5),
        ("sap", "lead", "II", 0.3, 0.1),
    ]
    table = pd.DataFrame(rows, columns=["attack", "kind", "name", "share", "size"])
    text = alt_texts.energy_use(table)
    assert text.endswith(
        "pgd most in 0–5 Hz (2.0 times white noise). sap most in II (3.0 times white noise)."
    )


def test_geometry_tells_rank_correlations_of_the_arms():
    points = pd.DataFrame({
        "dataset": "one", "arm": list("aabbcc"), "auroc_shared": [0.1, 0.3, 0.3, 0.5, 0.5, 0.7],
        "alignment": [3.0, 3, 2, 2, 1, 1], "uniformity": [1.0, 1, 2, 2, 3, 3],
    })  # fmt: skip
    text = alt_texts.geometry(points, ["alignment", "uniformity"])
    assert "one, 3 arms: alignment ρ = −1.00; uniformity ρ = +1.00" in text


def test_cost_is_the_mean_of_the_runs_and_skips_what_was_not_measured():
    table = pd.DataFrame({
        "arm": ["rocl", "rocl", "features-lr"], "training_seconds": [10.0, 14.0, 1.0],
        "attack_steps_per_second": [1000.0, 1400.0, np.nan],
    })  # fmt: skip
    text = alt_texts.cost(table)
    assert text.endswith(
        "rocl 12 s of training, 1,200 attack steps/s. features-lr 1 s of training."
    )


def test_data_are_described_by_their_counts():
    counts = pd.DataFrame({"class": ["N", "V"] * 2, "split": ["train", "train", "test", "test"],
                           "records": [1200, 3, 5, 0]})  # fmt: skip
    assert alt_texts.class_counts(counts).endswith(
        "train: N 1,200, V 3. test: N 5, V 0."
    )
    people = pd.DataFrame(
        {"age": [40.0, 60.0, np.nan], "sex": ["female", "male", "male"]}
    )
    ages = "1 female, 2 male; ages 40 to 60 years, median 50; age or sex unknown in 1."
    assert alt_texts.age_sex(people) == f"Ages of 3 patients by sex: {ages}"
    sizes = pd.DataFrame(
        {"std_mv": [0.1, 0.2, 0.3], "peak_to_peak_mv": [1.0, 2.0, 3.0]}
    )
    text = alt_texts.amplitudes(sizes, [0.005, 0.1])
    assert "standard deviation 0.2 mV (9 in 10 records 0.11 to 0.29)" in text
    assert "attack budgets 0.005 to 0.1 mV" in text


def test_an_ecg_is_described_by_length_leads_and_range():
    values = pd.DataFrame(
        {"time_s": [0.0, 1.0, 2.0], "I": [0.0, 0.1, 0.0], "V2": [-0.5, 1.25, 0.0]}
    )
    assert alt_texts.ecg(values, "N (record 7)") == (
        "ECG on ECG paper, N (record 7): 2.0 s, 2 leads, largest V2 from −0.50 to +1.25 mV."
    )
    one = alt_texts.ecg(values[["time_s", "I"]], "N")
    assert one.endswith("2.0 s, lead I from +0.00 to +0.10 mV.")


def test_perturbations_are_described_by_their_size():
    values = pd.DataFrame({"attack": ["ECG", "pgd", "pgd", "sap"], "time_s": [0.0, 0, 1, 0],
                           "I": [1.0, 0.01, -0.02, 0.005], "II": [1.0, 0.0, 0.0, 0.0]})  # fmt: skip
    assert alt_texts.perturbations(values, "record 7").endswith(
        "record 7. pgd up to 20 µV. sap up to 5 µV."
    )


def test_training_is_described_from_first_to_last_known_value():
    history = pd.DataFrame(
        {
            "epoch": [1, 2, 3],
            "loss": [5.0, 4.0, 3.25],
            "positive_similarity": [np.nan, 0.5, 0.9],
        }
    )
    assert alt_texts.training(history) == (
        "Training over 3 epochs, first to last. loss 5 to 3.25. positive similarity 0.5 to 0.9."
    )


def test_single_models_are_described():
    pairs = pd.DataFrame(
        {"kind": ["positive", "positive", "negative"], "similarity": [0.8, 0.9, -0.1]}
    )
    assert alt_texts.similarities(pairs).endswith(
        "medians. positive +0.85. negative −0.10."
    )
    negatives = pd.DataFrame({"similarity": [0.1, 0.2, 0.3], "weight": [0.5, 1.0, 1.5]})
    assert alt_texts.push_weights(negatives).endswith(
        "0.5 to 1.5, rank correlation +1.00."
    )
    assert "correlation" not in alt_texts.push_weights(negatives.assign(weight=1.0))
    both = pd.concat(
        [negatives.assign(scheme="hn"), negatives.assign(scheme="none", weight=1.0)]
    )
    assert alt_texts.push_weights(both).endswith(
        "hn 0.5 to 1.5, rank correlation +1.00. none 1 to 1."
    )
    points = pd.DataFrame(
        {"x": [0.0, 2.0, 5.0], "y": [1.0, 1.0, -1.0], "class": ["N", "N", "V"]}
    )
    assert alt_texts.embedding(points).endswith(
        "N (2) around (+1.00, +1.00). V (1) around (+5.00, −1.00)."
    )
    curve = pd.DataFrame(
        {"epsilon_mv": [0.02, 0.0], "view": "shared", "auroc": [0.4, 0.9]}
    )
    assert alt_texts.budget_curve(curve).endswith(
        "shared: 0.900 at 0 mV, 0.400 at 0.02 mV."
    )
    bars = pd.DataFrame({"attack": ["pgd", "none", "fgsm"], "auroc": [0.4, 0.9, 0.5]})
    assert alt_texts.attack_bars(bars).endswith(
        "mildest first. clean 0.900. fgsm 0.500. pgd 0.400."
    )


@pytest.mark.parametrize(
    ("value", "said"), [(-0.0123, "−0.012"), (0.5, "+0.500"), (np.nan, "–")]
)
def test_numbers_have_their_sign(value, said):
    assert alt_texts.signed(value) == said
