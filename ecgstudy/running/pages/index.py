"""The index page of a study: the answer first, then where everything else is."""

import re
from collections.abc import Mapping
from os.path import relpath
from pathlib import Path

import pandas as pd
from markupsafe import Markup
from PIL import Image

from ecgstudy.params import target
from ecgstudy.plots.style import at_headline, daggered, known_arm, of_all_seeds
from ecgstudy.plots.tables_html import SIGNS, intervals
from ecgstudy.running.html import (
    embedded_figure,
    read_provenance,
    write_methods,
    write_page,
)
from ecgstudy.running.pages.answer import (
    caveats,
    comparisons,
    data_name,
    listed,
    many,
    place_name,
    short_claims,
    verdict,
)
from ecgstudy.running.pages.forest import forest
from ecgstudy.study import ENSEMBLE, Paths, Study

FIGURES = {
    "contrasts": "All comparisons of two arms: difference in robust AUROC, with intervals",
    "epsilon_curves": "AUROC against the size of the attack (ε = 0: clean ECGs)",
    "pareto": "Clean against robust AUROC: up and to the right is better",
    "attacks": "AUROC of every arm under every attack at the headline ε",
    "corruptions": "AUROC of every arm under natural corruptions, by severity",
    "geometry": "Geometry of the embeddings, and robustness",
    "cost": "Training time and attack speed of every arm",
    "corruption_curves": "AUROC against the severity of natural corruptions",
    "use_by_attack": "Where each attack puts its energy, over what white noise would put there",
    "use_by_arm": "Where the headline attack puts its energy, by the arm attacked",
    "class_counts": "Records of each class",
    "age_sex": "Ages of the patients by sex",
    "amplitudes": "Amplitudes of the ECGs beside the attack budgets",
    "ecg": "An ECG of the class",
    "perturbations": "One ECG under each attack: perturbation and spectrum",
}
MAIN_FIGURES = list(FIGURES)[:7]
TABLES = {
    "verdicts": "the planned tests: better, worse, equivalent or undecided, by margin",
    "claims": "claims from the literature: verdict and deciding effect",
    "claim_evidence": "the comparisons that the verdicts on claims rest on",
    "contrasts": "differences between two arms, under every attack and ε",
    "robust_auroc": "AUROC of every arm and seed, under every attack and ε",
    "per_class": "the same by class, with average precision",
    "factor_effects": "what each factor of the arms does, by least squares",
    "masking_checks": "checks for hidden gradients, of every model",
    "sensitivity": "the headline result under other choices",
    "contrast_sensitivity": "the planned comparisons under other choices",
    "subgroups": "AUROC by age and sex",
    "headline_check": "how ε was chosen on validation records",
    "perturbations": "which bands, leads and parts of the beat attacks use",
    "pretraining": "how pretraining ended: loss, cosines, and how many negatives counted",
    "cost": "time, memory and size of every run, and the geometry of its embedding",
}
PAGES = {
    "01": ("Data", "what was read, how it is split, one ECG of each class"),
    "02": (
        "Pretraining of one model",
        "learning curves, who is pushed how hard, the embedding",
    ),
    "03": (
        "Evaluation of one model",
        "every attack, checks for hidden gradients, the most fragile ECG",
    ),
    "04": ("All runs", "every comparison, attack, corruption and sensitivity check"),
}
SYMBOLS = {"Yes": "▲", "In part": "▲", "No": "▼", "Mixed": "◆"}
MAX_ROWS = 100


def write_index(
    study: Study, paths: Paths, pages: list[str], *, synthetic: bool
) -> None:
    """Write ``report/index.html``, the answer first, and ``report/methods.html``.

    Of `pages`, names in the report folder, those that do not exist are not linked.
    """
    files = sorted(
        paths.tables.glob("*.csv"), key=lambda p: _rank(p.stem, list(TABLES))
    )
    tables = {file.stem: pd.read_csv(file) for file in files}
    headline = {
        name: options.headline_epsilon_mv for name, options in study.datasets.items()
    }
    there = {name: _page_name(name) for name in pages if (paths.report / name).exists()}
    tested = [target(d, p) for d in study.pretrained for p in study.protocols]
    _write(
        paths,
        first_screen(
            tables,
            study.statistics.confidence,
            headline,
            list(dict.fromkeys(tested)),
            synthetic,
        ),
        title=study.title,
        synthetic=synthetic,
        provenance=read_provenance(paths.tables),
        pages=there,
        arms=_arms(tables.get("robust_auroc"), headline, study.protocols[:1]),
        tables=[_table_entry(name, frame, paths) for name, frame in tables.items()],
        facts=_facts(study, tables.get("robust_auroc")),
    )


def _write(paths: Paths, said: dict[str, object], **content: object) -> None:
    images = sorted(
        paths.figures.glob("*.png"), key=lambda p: _rank(p.stem, MAIN_FIGURES)
    )
    figures = {
        "main_figures": [
            _index_figure(p, paths, 2000) for p in images if p.stem in MAIN_FIGURES
        ],
        "gallery": [
            _index_figure(p, paths, 640) for p in images if p.stem not in MAIN_FIGURES
        ],
    }
    write_methods(paths.report / "methods.html")
    write_page(
        "index.html.j2", paths.report / "index.html", **said, **figures, **content
    )


def first_screen(
    tables: Mapping[str, pd.DataFrame],
    confidence: float,
    headline: Mapping[str, float],
    datasets: list[str],
    synthetic: bool,
) -> dict[str, object]:
    """What the first screen says of the data sets tested on; `headline` is ε (mV) by data set."""
    rows, claims = (
        comparisons(tables.get("contrasts"), confidence),
        short_claims(tables.get("claims")),
    )
    found = verdict(rows, confidence)
    return {
        "verdict": found,
        "symbol": SYMBOLS.get(found.label, "○"),
        "confidence": f"{confidence:.0%}",
        "forest": forest(rows),
        "signs": SIGNS,
        "claims": [claim for claim in claims if claim["verdict"] != "not tested"],
        "untested": [claim for claim in claims if claim["verdict"] == "not tested"],
        "caveats": caveats(rows, tables, datasets, synthetic),
        "budgets": listed(
            list(
                dict.fromkeys(f"{headline[d]:g} mV" for d in datasets if d in headline)
            )
        ),
    }


def _arms(
    robust: pd.DataFrame | None, headline: Mapping[str, float], protocols: list[str]
) -> Markup:
    """Clean and robust AUROC of every arm, means over seeds, and what the arm is."""
    if robust is None or robust.empty:
        return Markup("")
    rows = pd.concat(
        [of_all_seeds(robust, protocol) for protocol in dict.fromkeys(protocols)]
    )
    rows = at_headline(rows, headline)
    rows = rows[rows["attack"].isin(["none", ENSEMBLE])]
    lines = []
    for (dataset, protocol, arm), own in rows.groupby(
        ["dataset", "protocol", "arm"], sort=False
    ):
        clean, attacked = own[own["attack"] == "none"], own[own["attack"] == ENSEMBLE]
        label, known = attacked["auroc_label"].mean(), known_arm(arm)
        lines.append({
            "data": place_name(dataset, protocol), "arm": daggered(arm, own),
            "clean AUROC": "".join(intervals(clean, "auroc_shared")),
            "robust AUROC": "".join(intervals(attacked, "auroc_shared")),
            "robust, a δ per label": "–" if pd.isna(label) else f"{label:.3f}",
            "idea": known.idea if known else "", "source": known.source if known else "",
        })  # fmt: skip
    frame = pd.DataFrame(lines)
    return _table(
        frame.drop(columns="data")
        if frame.get("data", pd.Series()).nunique() == 1
        else frame
    )


def _facts(study: Study, robust: pd.DataFrame | None) -> dict[str, str]:
    """How it was measured: term → text."""
    sizes = {}
    if robust is not None:
        tested = [
            target(*where)
            for where in zip(robust["dataset"], robust["protocol"], strict=True)
        ]
        sizes = robust.groupby(tested)[["n_records", "n_patients"]].max().T
    said = "{0[n_records]:,} records of {0[n_patients]:,} patients attacked"
    samples = [
        f"{data_name(d)}: " + (said.format(sizes[d]) if d in sizes else "not evaluated")
        for d in study.datasets
    ]
    budgets = [
        f"{data_name(d)}: {o.headline_epsilon_mv:g} mV"
        for d, o in study.datasets.items()
    ]
    return {
        "Data": "; ".join(samples),
        "Headline ε, set on validation records": "; ".join(budgets),
        "Headline attack": f"for each record the worst of {', '.join(study.evaluation.ensemble)}"
        + " and, at the headline ε, of all other attacks in the same ball"
        * bool(study.evaluation.attacks),
        "Seeds": str(len(study.seeds)),
        "Encoder": f"{study.encoder.name}; epochs of pretraining: {study.training.epochs}",
        "Protocols": ", ".join(study.protocols),
        "Arms": f"{len(study.arms)}: {', '.join(study.arms)}",
        "Params file": f"params/{study.study}.yaml",
    }


def _index_figure(path: Path, paths: Paths, limit: int) -> Markup:
    with Image.open(path) as image:
        alt = image.info.get("Description", path.stem.replace("_", " "))
    links = Markup(" · ").join(
        Markup('<a href="{}">{}</a>').format(
            relpath(file, paths.report), file.suffix[1:].upper()
        )
        for file in (path.with_suffix(suffix) for suffix in (".svg", ".png", ".csv"))
        if file.exists()
    )
    return embedded_figure(
        path.read_bytes(),
        alt,
        Markup("{} ({})").format(_caption(path.stem), links),
        limit,
    )


def _caption(stem: str) -> str:
    """“Records of each class: mitdb” of ``class_counts_mitdb``."""
    kind = max(
        (name for name in FIGURES if f"{stem}_".startswith(f"{name}_")),
        key=len,
        default="",
    )
    rest = stem.removeprefix(kind).strip("_").replace("_", " ")
    return ": ".join(filter(None, [FIGURES.get(kind, ""), rest]))


def _rank(name: str, first: list[str]) -> tuple[int, str]:
    return (first.index(name) if name in first else len(first)), name


def _page_name(name: str) -> tuple[str, str]:
    number, _, rest = Path(name).stem.partition("_")
    title, content = PAGES.get(number, (rest, ""))
    detail = re.sub(r"-seed(-?\d+)-?", r", seed \1 ", rest.partition("-")[2]).strip()
    return f"{title}: {detail}" if detail else title, content


def _table(frame: pd.DataFrame) -> Markup:
    look = {"index": False, "border": 0, "na_rep": "–", "classes": "sortable"}
    return Markup(frame.to_html(float_format="{:.4g}".format, **look))


def _table_entry(name: str, frame: pd.DataFrame, paths: Paths) -> dict[str, object]:
    if (
        "seed" in frame
    ):  # the rows of all seeds come first, in case not all rows are shown
        frame = frame.sort_values(
            "seed", key=lambda seed: seed.astype(str) != "all", kind="stable"
        )
    return {
        "name": name,
        "about": TABLES.get(name, ""),
        "size": many(len(frame), "row"),
        "link": relpath(paths.tables / f"{name}.csv", paths.report),
        "cut": MAX_ROWS if len(frame) > MAX_ROWS else None,
        "html": _table(frame.head(MAX_ROWS)),
    }
