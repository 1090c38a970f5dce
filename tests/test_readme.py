"""The README and the documentation say what the code and committed results say."""

import re
import subprocess
import sys

import pandas as pd
import pytest
import yaml

from ecgstudy.params import ResourceOptions
from ecgstudy.registry import ATTACKS, CORRUPTIONS
from ecgstudy.study import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = {
    path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")
}
PAGES = {"README.md": README} | {f"docs/{name}": text for name, text in DOCS.items()}


def test_the_readme_is_short():
    assert len(README.encode()) <= 12 * 1024


def test_tables_written_from_code_and_results_are_current():
    call = [sys.executable, "tools/update_docs.py", "--check"]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES)
def test_links_to_files_and_their_sections_are_not_dead(page):
    for target in re.findall(r"\]\((?!https?:|mailto:)([^)]+)\)", PAGES[page]):
        file, _, section = target.partition("#")
        path = (ROOT / page).parent / file if file else ROOT / page
        assert path.exists(), target
        if section:
            headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
            names = [
                re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings
            ]
            assert section in names, target


def test_the_python_example_of_the_readme_runs(monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(ROOT)
    exec(code, made := {})
    assert made["form"]["fs"] == 100
    assert len(made["scores"].sets) > 0


def test_attacks_table_names_every_attack_and_corruption():
    named = set(re.findall(r"`([^`]+)`", DOCS["attacks.md"]))
    assert set(ATTACKS.own) <= named
    assert set(CORRUPTIONS.own) <= named


def test_commands_of_the_pages_are_targets_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    for text in PAGES.values():
        assert set(re.findall(r"`make ([a-z-]+)|^make ([a-z-]+)", text)) <= {
            (name, "") for name in targets
        } | {("", name) for name in targets}


def test_numbers_of_the_answer_are_those_of_the_committed_tables():
    folder = ROOT / "outputs/ptbxl/tables"
    robust = pd.read_csv(folder / "robust_auroc.csv").query("seed == 'all'")
    clean = robust[robust["attack"] == "none"].set_index("arm")["auroc_shared"]
    attacked = robust[(robust["attack"] == "ensemble") & (robust["epsilon_mv"] == 0.02)]
    attacked = attacked.set_index("arm")["auroc_shared"]
    words = " ".join(README.split())
    simclr, rocl, pgd_at = (f"{attacked[a]:.3f}" for a in ("simclr", "rocl", "pgd-at"))
    assert f"from {simclr} (SimCLR) to {rocl}" in words
    assert f"adversarial training reaches {pgd_at}" in words
    drop = f"{clean['supervised']:.3f} to {attacked['supervised']:.3f}"
    assert f"supervised model from {drop}" in words
    assert abs(clean["rocl"] - clean["simclr"]) < 0.005
    contrasts = pd.read_csv(folder / "contrasts.csv").query("headline")
    deltas = contrasts[contrasts["family"] == "primary"]["delta"]
    low, high = (
        f"{value:+.3f}".replace("-", "−") for value in (deltas.min(), deltas.max())
    )
    assert f"{low} to {high} in robust AUROC on PTB-XL" in words


def test_what_jobs_ask_for_and_the_profiles_are_those_of_the_code():
    text = DOCS["running.md"]
    block = re.search(r"```yaml\n(resources:.*?)```", text, re.DOTALL)[1]
    assert yaml.safe_load(block)["resources"] == ResourceOptions().model_dump()
    rows = re.findall(
        r"^\| `([a-z]+)`(?: \(default [^)]*\))? \| (?:this machine|a SLURM)", text, re.M
    )
    assert set(rows) == {path.name for path in (ROOT / "profiles").iterdir()}
