"""Executed notebooks → self-contained HTML pages, and the index page that answers the question."""

import ast
import io
import json
import re
from base64 import b64decode, b64encode
from collections.abc import Mapping
from html import escape
from os.path import relpath
from pathlib import Path

import nbformat
import pandas as pd
from bs4 import BeautifulSoup
from jinja2 import Environment, FileSystemLoader
from latex2mathml.converter import convert
from markupsafe import Markup
from nbconvert.filters import Highlight2HTML, ansi2html
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from PIL import Image
from pygments.formatters import HtmlFormatter

from ecgstudy import __version__
from ecgstudy.errors import StudyError
from ecgstudy.files import write_text
from ecgstudy.statistics import MIN_SEEDS
from ecgstudy.study import ROOT, Paths, Study

TEMPLATES = Path(__file__).parent / "templates"
BANNER = "Simulated ECGs: this page proves the machinery only, it is no evidence about ECGs"
MAIN_FIGURES = ("contrasts", "epsilon_curves", "pareto", "cost")
MAIN_TABLES = ("contrasts", "robust_auroc", "per_class", "factor_effects", "masking_checks", "cost")
MAX_ROWS = 200
LINKS = ("src", "href", "srcset", "data", "poster", "action", "background", "xlink:href")
REMOTE = re.compile(r"(?:url\(|@import)\s*[\"']?\s*(?!data:|#)([^\"')\s;]+)")


def render_notebook(
    executed: str | Path,
    out: str | Path,
    *,
    title: str,
    synthetic: bool,
    provenance: Mapping[str, object] | None = None,
) -> None:
    """Write an executed notebook as one HTML file that needs no network.

    Code is folded away, parameters come last, figures are embedded with their descriptions and formulas
    are MathML. Without `provenance`, ``provenance.json`` beside the notebook is shown if there is one.

    Raises
    ------
    StudyError
        When the notebook cannot be read, or refers to something outside the page.
    """
    executed = Path(executed)
    try:
        notebook = nbformat.read(executed, as_version=4)
    except (OSError, ValueError, nbformat.reader.NotJSONError) as error:
        raise StudyError(f"{executed}: not a readable notebook ({error}); execute it again") from error
    cells = [c for c in notebook.cells if not _tags(c) & {"parameters", "injected-parameters", "remove-cell"}]
    _describe_images(cells, title)
    if provenance is None:
        provenance = _read_provenance(executed.parent)
    content = {"cells": cells, "parameters": _parameters(notebook.cells)}
    _write_page("notebook.html.j2", out, title=title, synthetic=synthetic, provenance=provenance, **content)


def write_index(
    study: Study,
    paths: Paths,
    pages: list[str],
    *,
    synthetic: bool,
    provenance: Mapping[str, object] | None = None,
) -> None:
    """Write ``report/index.html``: the answer first, then pages, figures, claims and tables.

    Parameters
    ----------
    pages
        Names of pages in the report folder; those that do not exist are not linked.
    """
    files = sorted(paths.tables.glob("*.csv"), key=lambda p: _rank(p.stem, MAIN_TABLES))
    tables = {file.stem: pd.read_csv(file) for file in files}
    images = sorted(paths.figures.glob("*.png"), key=lambda p: _rank(p.stem, MAIN_FIGURES))
    contrasts, claims = tables.get("contrasts"), tables.get("claims")
    primary = None if contrasts is None else contrasts[contrasts["family"] == "primary"]
    _write_page(
        "index.html.j2",
        paths.report / "index.html",
        title=study.title,
        synthetic=synthetic,
        provenance=_read_provenance(paths.tables) if provenance is None else provenance,
        answer=_answer(study, primary),
        primary=_primary_table(study, primary),
        facts=_facts(study, tables.get("robust_auroc")),
        pages={name: _page_name(name) for name in pages if (paths.report / name).exists()},
        main_figures=[_index_figure(p, paths, 2000) for p in images if p.stem in MAIN_FIGURES],
        gallery=[_index_figure(p, paths, 640) for p in images if p.stem not in MAIN_FIGURES],
        claims=None if claims is None else _table(claims.drop(columns="evidence"), "text"),
        tables=[_table_entry(name, frame, paths) for name, frame in tables.items()],
    )


def check_self_contained(html: str) -> list[str]:
    """Everything that a browser would have to load from elsewhere to show `html`; links in prose are fine."""
    soup, found = BeautifulSoup(html, "html.parser"), []
    for tag in soup.find_all(lambda tag: tag.name != "a"):
        values = [tag.get(name) for name in LINKS if tag.get(name)]
        found += [value for value in values if not value.startswith(("data:", "#"))]
        found += REMOTE.findall(tag.get("style", ""))
    for style in soup.find_all("style"):
        found += REMOTE.findall(style.get_text())
    for script in soup.find_all("script"):
        found += re.findall(r"(?:https?:)?//[\w.-]+\.\w+[^\s\"'`)]*", script.get_text())
    return found


def _verdict(row: Mapping, level: float) -> str:
    if pd.isna(row["p_holm"]) or row["p_holm"] > 1 - level:
        return "undecided"
    return "higher" if row["delta"] > 0 else "lower"


def _answer(study: Study, primary: pd.DataFrame | None) -> list[str]:
    """The study's answer in sentences, with what limits it."""
    if primary is None or primary.empty:
        return ["This study ran none of the primary comparisons (an adaptive weighting against rocl)."]
    verdicts = [_verdict(row, study.statistics.confidence) for row in primary.to_dict("records")]
    higher, lower, undecided = (verdicts.count(word) for word in ("higher", "lower", "undecided"))
    said = [
        "Primary comparisons of adaptive with standard weighting: robust AUROC is higher "
        f"in {higher}, lower in {lower} and undecided in {undecided} of {len(verdicts)}."
    ]
    if len(study.seeds) < MIN_SEEDS:
        said.append(f"Seeds: {len(study.seeds)}; with fewer than {MIN_SEEDS} nothing is claimed beyond them.")
    if (primary["masking_ok"].astype(str) == "False").any():
        said.append("† A gradient-masking check fails for one of the two arms: robust AUROC may be too high.")
    return said


def _primary_table(study: Study, primary: pd.DataFrame | None) -> Markup:
    if primary is None or primary.empty:
        return Markup()
    level, rows = study.statistics.confidence, []
    for row in primary.to_dict("records"):
        low, high, dagger = row["ci_low"], row["ci_high"], " †" * (str(row.get("masking_ok")) == "False")
        rows.append({
            "data": row["dataset"],
            "comparison": f"{row['adaptive']} − {row['standard']}{dagger}",
            "result": _verdict(row, level),
            "Δ robust AUROC": _signed(row["delta"]),
            f"{level:.0%} interval": "–" if pd.isna(low) else f"{_signed(low)} to {_signed(high)}",
            "p (Holm)": "–" if pd.isna(row["p_holm"]) else f"{row['p_holm']:.2g}",
            "Δ clean AUROC": _signed(row.get("clean_delta", float("nan"))),
            "ε (mV)": f"{row['epsilon_mv']:g}",
        })  # fmt: skip
    return _table(pd.DataFrame(rows))


def _signed(value: float) -> str:
    return "–" if pd.isna(value) else f"{value:+.3f}".replace("-", "−")


def _facts(study: Study, robust: pd.DataFrame | None) -> dict[str, str]:
    data = []
    for name in study.datasets:
        rows = robust[robust["dataset"] == name] if robust is not None else ()
        size = "{:,} records of {:,} patients attacked"
        found = len(rows) and size.format(rows["n_records"].max(), rows["n_patients"].max())
        data.append(f"{name} ({found})" if found else name)
    budgets = [f"{name}: {options.headline_epsilon_mv:g} mV" for name, options in study.datasets.items()]
    return {
        "Data": "; ".join(data),
        "Headline ε, set on validation records": "; ".join(budgets),
        "Headline attack": study.evaluation.headline_attack,
        "Arms": f"{len(study.arms)}: {', '.join(study.arms)}",
        "Seeds": f"{len(study.seeds)}",
        "Encoder": f"{study.encoder.name}, {study.training.epochs} epochs of pretraining",
        "Params file": f"params/{study.study}.yaml",
    }


def _write_page(template: str, out: str | Path, **content: object) -> None:
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True)
    environment.filters |= {
        "markdown": _markdown,
        "highlight": lambda source: Markup(Highlight2HTML()(source)),
        "ansi": lambda text: Markup(ansi2html(text)),
        "shown": _shown,
    }
    fixed = {"css": _css(), "banner": BANNER, "version": __version__}
    html = environment.get_template(template).render(**content, **fixed)
    # Where the study lies on this machine is nobody's business and would change the page elsewhere.
    html = html.replace(f"{ROOT}/", "")
    if outside := check_self_contained(html):
        raise StudyError(
            f"{out}: the page would load {outside[0]!r} from elsewhere; embed it or leave it out"
        )
    write_text(out, html)


def _css() -> Markup:
    light, dark = (HtmlFormatter(style=s).get_style_defs(".highlight") for s in ("friendly", "github-dark"))
    own = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    return Markup(f"{light}\n@media screen and (prefers-color-scheme: dark) {{ {dark} }}\n{own}")


def _markdown(source: str) -> Markup:
    renderer = IPythonRenderer(escape=False, exclude_anchor_links=True)
    renderer.inline_math = lambda body: _mathml(body, "inline")
    renderer.block_math = lambda body: _mathml(body, "block")
    return Markup(MarkdownWithMath(renderer=renderer).render(source))


def _mathml(tex: str, display: str) -> str:
    try:
        return convert(tex.strip(), display=display)
    except Exception:  # the converter has no common error class; the formula's source is readable too
        return f"<code>{escape(tex)}</code>"


def _tags(cell: nbformat.NotebookNode) -> set[str]:
    return set(cell.metadata.get("tags", []))


def _parameters(cells: list) -> dict[str, object]:
    """What the `parameters` cell and papermill's injected one assign, the latter winning."""
    found = {}
    for cell in cells:
        if cell.cell_type == "code" and _tags(cell) & {"parameters", "injected-parameters"}:
            for node in ast.parse(cell.source).body:
                if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                    found[node.targets[0].id] = ast.unparse(node.value).strip("'\"")
    return found


def _describe_images(cells: list, heading: str) -> None:
    """Give images without a description the heading they stand under."""
    for cell in cells:
        if cell.cell_type == "markdown":
            headings = re.findall(r"^#+\s+(.+)$", cell.source, re.MULTILINE)
            heading = headings[-1] if headings else heading
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.metadata.setdefault("image/png", {}).setdefault("alt", f"Figure: {heading}")


def _shown(output: nbformat.NotebookNode) -> Markup:
    data = output.data
    if "image/png" in data:
        return _figure(b64decode(data["image/png"]), output.metadata["image/png"]["alt"])
    if "text/html" in data:
        return Markup('<div class="scroll">{}</div>').format(Markup(data["text/html"]))
    if "image/svg+xml" in data:
        return Markup("<figure>{}</figure>").format(Markup(data["image/svg+xml"]))
    if "text/markdown" in data:
        return Markup('<section class="prose">{}</section>').format(_markdown(data["text/markdown"]))
    return Markup('<pre class="output">{}</pre>').format(data.get("text/plain", ""))


def _figure(png: bytes, alt: str, caption: Markup | str = "", limit: int | None = None) -> Markup:
    """A PNG as data URI, at 100 CSS pixels an inch; more than `limit` pixels wide, it is reduced."""
    with Image.open(io.BytesIO(png)) as image:
        width = round(image.width * 100 / image.info.get("dpi", (100, 100))[0])
        if limit and image.width > limit:
            small, stream = image.convert("RGB"), io.BytesIO()
            small.thumbnail((limit, 4 * limit))
            small.quantize(64).save(stream, "PNG", optimize=True)
            png = stream.getvalue()
    uri = f"data:image/png;base64,{b64encode(png).decode('ascii')}"
    text = Markup("<figcaption>{}</figcaption>").format(caption) if caption else ""
    return Markup('<figure><img src="{}" alt="{}" width="{}">{}</figure>').format(uri, alt, width, text)


def _index_figure(path: Path, paths: Paths, limit: int) -> Markup:
    with Image.open(path) as image:
        alt = image.info.get("Description", path.stem.replace("_", " "))
    links = Markup(" · ").join(
        Markup('<a href="{}">{}</a>').format(relpath(file, paths.report), file.suffix[1:])
        for file in (path.with_suffix(suffix) for suffix in (".svg", ".png", ".csv"))
        if file.exists()
    )
    return _figure(path.read_bytes(), alt, Markup("{} ({})").format(alt, links), limit)


def _rank(name: str, first: tuple[str, ...]) -> tuple[int, str]:
    return (first.index(name) if name in first else len(first)), name


def _read_provenance(folder: Path) -> dict[str, object]:
    file = folder / "provenance.json"
    if not file.exists():
        return {}
    found = json.loads(file.read_text(encoding="utf-8"))
    found |= found.pop("parameters", None) or {}
    if "seconds" in found:
        found["wall time (s)"] = round(found.pop("seconds"), 1)
    return found


def _page_name(name: str) -> str:
    steps = {"01": "Data", "02": "Pretraining", "03": "Evaluation", "04": "All runs: tables and figures"}
    number, _, rest = Path(name).stem.partition("_")
    detail = rest.partition("-")[2]
    return f"{number} · {steps.get(number, rest)}" + (f": {detail}" if detail else "")


def _table(frame: pd.DataFrame, classes: str = "") -> Markup:
    return Markup(
        frame.to_html(
            index=False, border=0, na_rep="–", float_format="{:.4g}".format, classes=["sortable", classes]
        )
    )


def _table_entry(name: str, frame: pd.DataFrame, paths: Paths) -> dict[str, object]:
    if "seed" in frame:  # the rows of all seeds come first, in case not all rows are shown
        frame = frame.sort_values("seed", key=lambda seed: seed.astype(str) != "all", kind="stable")
    return {
        "name": name,
        "size": f"{len(frame):,} rows",
        "link": relpath(paths.tables / f"{name}.csv", paths.report),
        "cut": MAX_ROWS if len(frame) > MAX_ROWS else None,
        "html": _table(frame.head(MAX_ROWS)),
    }
