"""What the README shows works as it stands there."""

import itertools
import re

import pandas as pd
import torch
import yaml

from ecgstudy.attacks.corruptions import CORRUPTIONS
from ecgstudy.attacks.named import ATTACKS
from ecgstudy.models.backbones import ENCODERS
from ecgstudy.models.encoders import build_encoder, count_parameters
from ecgstudy.params import ResourceOptions
from ecgstudy.pretraining.suffixes import arm_names, describe_arm, get_arm
from ecgstudy.study import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_arms_table_has_every_arm_with_its_idea_source_and_factors():
    for name in arm_names():
        arm = get_arm(name)
        assert (
            f"| `{name}` | {arm.idea} | {arm.source} | `{describe_arm(name)}` |"
            in README
        )


def test_encoders_table_has_the_numbers_of_parameters():
    for name, size in itertools.product(
        ENCODERS.keys() - {"pretrained"}, ("small", "base")
    ):
        leads = [
            build_encoder(name, {"size": size}, torch.zeros(n), torch.ones(()), False)
            for n in (1, 12)
        ]
        assert (
            f"| `{name}` | {size} | {' | '.join(f'{count_parameters(e):,}' for e in leads)} |"
            in README
        )


def test_attacks_table_names_every_attack_and_corruption():
    rows = re.findall(r"^\| (`.*?) \|", README, re.MULTILINE)
    named = set()
    for (
        row
    ) in rows:  # "`apgd-ce`, `-bce`": a dash continues the family of the first name
        first, *others = re.findall(r"`([^`]+)`", row)
        stem = first.split("-")[0]
        named |= {
            first,
            *(stem + other if other.startswith("-") else other for other in others),
        }
    assert set(ATTACKS) <= named
    assert all(f"`{name}`" in README for name in CORRUPTIONS)


def test_commands_of_the_readme_are_targets_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text()
    used = set(re.findall(r"make ([a-z-]+)", README))
    assert used >= {"study", "test"}
    assert used <= set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))


def test_numbers_of_the_answer_are_those_of_the_committed_tables():
    rows: dict[str, list[str]] = {}
    contrasts = pd.read_csv(ROOT / "outputs/pilot/tables/contrasts.csv").query(
        "family == 'primary'"
    )
    assert len(contrasts) == 8, "the family that Holm's correction covers"
    for row in contrasts.sort_values("dataset", kind="stable").itertuples():
        interval = f"{row.delta:+.3f} [{row.ci_low:+.3f}, {row.ci_high:+.3f}]"
        cells = f"{interval} | {row.p_holm:.2f} | {row.mde:.3f}"
        rows.setdefault(f"`{row.adaptive}` − `{row.standard}`", []).append(cells)
    for study in ("mitdb", "ptbxl"):
        robust = pd.read_csv(ROOT / f"outputs/{study}/tables/robust_auroc.csv").query(
            "seed == 'all'"
        )
        clean = robust.query("attack == 'none'").set_index("arm")["auroc_shared"]
        for row in robust.query(
            "attack == 'ensemble' and epsilon_mv == 0.02"
        ).itertuples():
            dagger = " †" * (str(row.masking_ok) == "False")
            interval = (
                f"{row.auroc_shared:.3f} [{row.ci_low:.3f}, {row.ci_high:.3f}]{dagger}"
            )
            cells = f"{clean[row.arm]:.3f} | {interval} | {row.auroc_label:.3f}"
            rows.setdefault(f"`{row.arm}`", []).append(cells)
    assert all(len(cells) == 2 for cells in rows.values())
    for name, cells in rows.items():
        assert f"| {name} | {' | '.join(cells)} |" in README


def test_exploratory_differences_are_those_of_the_committed_tables():
    found = {}
    for study in ("mitdb", "ptbxl"):
        rows = pd.read_csv(ROOT / f"outputs/{study}/tables/contrasts.csv").query(
            "headline"
        )
        exploratory = rows[rows["family"] == "exploratory"]
        assert len(exploratory) == 12
        found[study] = exploratory.set_index(["adaptive", "standard"])
    words = " ".join(README.split())
    shuffled, temperature = "rocl-hn-shuffled", "rocl-hn-temperature"
    for pair in (
        ("rocl-clef", "rocl-clef-shuffled"),
        ("rocl-hn", shuffled),
        ("rocl-hn", temperature),
    ):
        row = found["ptbxl"].loc[pair]
        named = f"`{pair[0]}` − `{pair[1]}` {row.delta:+.3f} [{row.ci_low:+.3f}, {row.ci_high:+.3f}]"
        assert named in words
        assert found["mitdb"].loc[pair, ["ci_low", "ci_high"]].abs().max() < 0.335
    here, there = (found[study].loc[("clef", "simclr")] for study in ("ptbxl", "mitdb"))
    assert (
        f"`clef` − `simclr` on PTB-XL, {here.delta:+.3f} [{here.ci_low:+.3f}, {here.ci_high:+.3f}]"
        in words
    )
    assert (
        f"p = {here.p:.3f} before any correction; on MIT-BIH {there.delta:+.3f}"
        in words
    )
    joint = pd.read_csv(ROOT / "outputs/pilot/tables/contrasts.csv").query(
        "dataset == 'ptbxl'"
    )
    limits = (
        joint[["joint_low", "joint_high"]]
        .abs()
        .max(axis=1)
        .dropna()
        .sort_values()
        .tolist()
    )
    assert f"exclude differences beyond ±{limits[2]:.3f} for three of the four" in words


def test_single_steps_are_those_of_the_committed_tables():
    home = ROOT / "outputs/single-step/tables"
    robust, cost = (
        pd.read_csv(home / "robust_auroc.csv", dtype={"seed": str}),
        pd.read_csv(home / "cost.csv"),
    )
    robust = robust[(robust["attack"] == "ensemble") & ~robust["seed"].str.isdecimal()]
    auroc = robust.set_index(["arm", "epsilon_mv"])["auroc_shared"]
    ms = cost.groupby("arm")["step_ms"].mean()
    for arm in (
        "rocl",
        "rocl-rsfgsm",
        "rocl-nfgsm",
        "pgd-at",
        "pgd-at-rsfgsm",
        "pgd-at-nfgsm",
    ):
        near, far = (f"{auroc[arm, epsilon]:.3f}" for epsilon in (0.02, 0.05))
        assert f"| `{arm}` | {near} | {far} | {ms[arm]:.0f} ms |" in README


def test_speeds_beside_other_libraries_are_those_of_the_committed_benchmarks():
    bench = pd.read_csv(ROOT / "outputs/bench/cpu.csv").query("part == 'peers'")
    ratios = bench.set_index(["case", "variant"])["ratio"]  # of our time to theirs
    for attack, peers in {
        "PGD-20": ["torchattacks", "foolbox", "ART"],
        "APGD-100": ["torchattacks", "ART"],
    }.items():
        (line,) = re.findall(
            rf"^\| {attack} beside {', '.join(peers)}.*", README, re.MULTILINE
        )
        (short,) = re.findall(
            rf"^\| ours with `evaluation.gradients: bfloat16`, {attack}.*",
            README,
            re.MULTILINE,
        )
        for study in ("mitdb", "ptbxl"):
            for ours, row in (("ours", line), ("ours, gradients in bfloat16", short)):
                each = ratios[f"{study} {attack}"]
                speeds = ", ".join(f"{each[ours] / each[peer]:.2f}" for peer in peers)
                assert f" {speeds} times" in row


def test_operations_on_a_gpu_are_those_of_the_committed_benchmarks():
    bench = pd.read_csv(ROOT / "outputs/bench/cpu.csv").query(
        "part == 'launches' and variant == 'ours'"
    )
    kinds, (row,) = (
        bench.groupby("benchmark"),
        re.findall(r"^\| share of a step's GPU launches.*", README, re.M),
    )
    for kind in ("pretraining", "attack"):
        ratios = kinds["ratio"].get_group(f"operations of {kind} steps")
        assert (
            f"{ratios.min():.2f} to {ratios.max():.2f} of a{'n' * (kind == 'attack')} {kind} step's"
            in row
        )
    waits = kinds["waits"].max()
    assert (
        waits["operations of pretraining steps"],
        waits["operations of attack steps"],
    ) == (3, 0)
    assert "up to 3 times in the first, never in the second" in row


def test_what_a_large_data_set_would_take_follows_from_the_committed_benchmarks():
    bench = pd.read_csv(ROOT / "outputs/bench/cpu.csv").query(
        "part == 'steps' and variant == 'ours'"
    )
    (step,) = bench.loc[bench["case"] == "ptbxl rocl-ip-hn, batch 128", "value"] / 1000
    epoch, large = 17 * step, 6250 * step
    assert f"| a pretraining step, batch 128 | {step:.2f} s on one core |" in README
    assert (
        f"| an epoch | {epoch:.1f} s (17 steps, by arithmetic) | 6,250 steps: {large / 60:.0f} min"
        in README
    )
    assert f"| a run of 60 epochs | {epoch:.1f} min (by arithmetic;" in README
    assert (
        f"{large / 60:.0f} h on one core; 42 such runs {42 * large * 60 / 86400:.0f} core-days |"
        in README
    )
    cost = pd.read_csv(ROOT / "outputs/ptbxl/tables/cost.csv").query(
        "arm == 'rocl-ip-hn'"
    )
    low, high = cost["training_seconds"].min() / 60, cost["training_seconds"].max() / 60
    assert f"the pilot's took {low:.0f} to {high:.0f} min beside other jobs" in README


def test_what_jobs_ask_for_and_the_profiles_are_those_of_the_code():
    block = re.search(r"```yaml\n(resources:.*?)```", README, re.DOTALL).group(1)
    assert yaml.safe_load(block)["resources"] == ResourceOptions().model_dump()
    rows = set(
        re.findall(
            r"^\| `([a-z]+)`(?: \(default [^)]*\))? \| (?:this machine|a SLURM)",
            README,
            re.MULTILINE,
        )
    )
    assert rows == {path.name for path in (ROOT / "profiles").iterdir()}
