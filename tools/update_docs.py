"""Write the tables of the documentation that come from the code or committed results.

python tools/update_docs.py          # rewrites them in docs/
python tools/update_docs.py --check  # fails if something would change
"""

import re
import sys
from itertools import product

import pandas as pd
import torch

from ecgstudy.files import ROOT
from ecgstudy.models.encoders import build_encoder, count_parameters
from ecgstudy.pretraining.suffixes import arm_names, describe_arm, get_arm

ENCODER_IDEAS = {
    "resnet1d": "residual network along time (He et al. 2016)",
    "xresnet1d": "its bag-of-tricks form, as in the PTB-XL benchmark",
    "cnn": "plain convolutions",
    "lstm": "convolutions, then a bidirectional LSTM",
    "vit1d": "transformer on patches of time; layer norm, so no dual statistics",
}


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def arms() -> str:
    """Every arm of the study: idea, source, factors."""
    rows = []
    for name in arm_names():
        arm = get_arm(name)
        rows.append([f"`{name}`", arm.idea, arm.source, f"`{describe_arm(name)}`"])
    return markdown(["arm", "idea", "source", "factors"], rows)


def encoders() -> str:
    """Every encoder and size, with its number of parameters."""
    rows = []
    for (name, idea), size in product(ENCODER_IDEAS.items(), ("small", "base")):
        counts = []
        for leads in (1, 12):
            mean, std = torch.zeros(leads), torch.ones(())
            encoder = build_encoder(name, {"size": size}, mean, std, False)
            counts.append(f"{count_parameters(encoder):,}")
        rows.append([f"`{name}`", size, *counts, idea if size == "small" else ""])
    return markdown(["encoder", "size", "parameters, 1 lead", "12 leads", ""], rows)


def single_step() -> str:
    """Robust AUROC and step time of one inner step against three."""
    folder = ROOT / "outputs/single-step/tables"
    robust = pd.read_csv(folder / "robust_auroc.csv")
    robust = robust[(robust["seed"] == "all") & (robust["attack"] == "ensemble")]
    auroc = robust.pivot(index="arm", columns="epsilon_mv", values="auroc_shared")
    step_ms = pd.read_csv(folder / "cost.csv").groupby("arm")["step_ms"].mean()
    rows = [
        [
            f"`{arm}`",
            f"{auroc.at[arm, 0.02]:.3f}",
            f"{auroc.at[arm, 0.05]:.3f}",
            f"{step_ms[arm]:.0f} ms",
        ]
        for base in ("rocl", "pgd-at")
        for arm in (base, f"{base}-rsfgsm", f"{base}-nfgsm")
    ]
    return markdown(["arm", "ε = 0.02 mV", "ε = 0.05 mV", "step"], rows)


def bench(part: str) -> pd.DataFrame:
    """Committed measurements of one part of `make bench`."""
    table = pd.read_csv(ROOT / "outputs/bench/cpu.csv")
    return table[table["part"] == part]


def peers() -> str:
    """Our attacks compared with those of other libraries."""
    table = bench("peers")
    variants = ["ours", "ours, gradients in bfloat16", "torchattacks", "foolbox", "ART"]
    rows = []
    for case, found in table.groupby("case", sort=False):
        found = found.set_index("variant")
        cells = [
            f"{found.at[name, 'value']:.1f} ({found.at[name, 'loss']:.4f})"
            if name in found.index
            else "–"
            for name in variants
        ]
        rows.append([case, *cells])
    return markdown(["attack", *variants], rows)


def efficiency() -> str:
    """Share of our steps that is the network's own passes."""
    ours = bench("steps").query("variant == 'ours'")
    rows = [[row.case, f"{row.ratio:.2f}"] for row in ours.itertuples()]
    return markdown(["step", "efficiency"], rows)


TABLES = {
    "docs/arms.md": {"arms": arms, "single-step": single_step, "encoders": encoders},
    "docs/speed.md": {"peers": peers, "efficiency": efficiency},
}


def updated(text: str, name: str, table: str) -> str:
    """`text` with `table` between the marks called `name`."""
    marks = rf"(<!-- {name}: begin[^\n]*-->\n).*?(<!-- {name}: end -->)"
    found = re.search(marks, text, re.DOTALL)
    return text[: found.end(1)] + table + "\n" + text[found.start(2) :]


def main() -> int:
    """Rewrite, or with ``--check`` compare; 1 if something differs."""
    differs = False
    for file, tables in TABLES.items():
        path = ROOT / file
        before = text = path.read_text(encoding="utf-8")
        for name, make in tables.items():
            text = updated(text, name, make())
        if text != before:
            differs = True
            print(f"{file}: {'out of date' if '--check' in sys.argv else 'written'}")
            if "--check" not in sys.argv:
                path.write_text(text, encoding="utf-8")
    return int(differs and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
