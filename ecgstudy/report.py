"""Executed notebooks → self-contained HTML pages, and the index page that answers the question."""

import argparse
import ast
import io
import json
import re
import sys
from base64 import b64decode, b64encode
from collections.abc import Mapping
from html import escape
from os.path import relpath
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":
    # jsonschema, which nbformat imports, would compile a grammar of URIs for a second; no notebook needs it.
    sys.modules["rfc3987_syntax"] = None

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
from ecgstudy.files import ROOT, write_text

if TYPE_CHECKING:  # a page is made by a process of its own, which need not wait for torch
    from ecgstudy.study import Paths, Study

TEMPLATES = Path(__file__).parent / "templates"
BANNER = "Simulated ECGs: this page proves the machinery only, it is no evidence about ECGs"
MAIN_FIGURES = ("contrasts", "epsilon_curves", "pareto", "attacks", "corruptions", "geometry", "cost")
MAIN_TABLES = (
    "claims", "contrasts", "robust_auroc", "per_class", "factor_effects", "masking_checks", "sensitivity",
    "cost",
)  # fmt: skip
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
    study: "Study",
    paths: "Paths",
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
    from ecgstudy.statistics import MIN_SEEDS

    files = sorted(paths.tables.glob("*.csv"), key=lambda p: _rank(p.stem, MAIN_TABLES))
    tables = {file.stem: pd.read_csv(file) for file in files}
    images = sorted(paths.figures.glob("*.png"), key=lambda p: _rank(p.stem, MAIN_FIGURES))
    claims = tables.get("claims")
    _write_page(
        "index.html.j2",
        paths.report / "index.html",
        title=study.title,
        synthetic=synthetic,
        provenance=_read_provenance(paths.tables) if provenance is None else provenance,
        study=study,
        min_seeds=MIN_SEEDS,
        primary=_primary(study, tables.get("contrasts")),
        samples=_samples(study, tables.get("robust_auroc")),
        pages={name: _page_name(name) for name in pages if (paths.report / name).exists()},
        main_figures=[_index_figure(p, paths, 2000) for p in images if p.stem in MAIN_FIGURES],
        gallery=[_index_figure(p, paths, 640) for p in images if p.stem not in MAIN_FIGURES],
        claims=None if claims is None else _table(claims.drop(columns="evidence")),
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


def _primary(study: "Study", contrasts: pd.DataFrame | None) -> list[dict]:
    """The primary comparisons, each with its `result`: higher, lower or undecided."""
    rows = [] if contrasts is None else contrasts[contrasts["family"] == "primary"].to_dict("records")
    for row in rows:
        clear = row["p_holm"] <= 1 - study.statistics.confidence  # False where p is missing
        clear &= str(row.get("beyond_seeds")) == "True"
        row["result"] = ("higher" if row["delta"] > 0 else "lower") if clear else "undecided"
        row["dagger"] = " †" if str(row.get("masking_ok")) == "False" else ""
    return rows


def _signed(value: float) -> str:
    return "–" if pd.isna(value) else f"{value:+.3f}".replace("-", "−")


def _samples(study: "Study", robust: pd.DataFrame | None) -> dict[str, str]:
    """Data set → how many of its records were attacked."""
    from ecgstudy.options import target  # with pydantic, which pages of notebooks need not wait for

    if robust is not None:
        tested = [target(*where) for where in zip(robust["dataset"], robust["protocol"], strict=True)]
    sizes = {} if robust is None else robust.groupby(tested)[["n_records", "n_patients"]].max().T
    said = "{0[n_records]:,} records of {0[n_patients]:,} patients attacked"
    return {name: said.format(sizes[name]) if name in sizes else "not evaluated" for name in study.datasets}


def _write_page(template: str, out: str | Path, **content: object) -> None:
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True)
    environment.filters |= {
        "markdown": _markdown,
        "highlight": lambda source: Markup(Highlight2HTML()(source)),
        "ansi": lambda text: Markup(ansi2html(text)),
        "shown": _shown,
        "signed": _signed,
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


def _index_figure(path: Path, paths: "Paths", limit: int) -> Markup:
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


def _table(frame: pd.DataFrame) -> Markup:
    look = {"index": False, "border": 0, "na_rep": "–", "classes": "sortable"}
    return Markup(frame.to_html(float_format="{:.4g}".format, **look))


def _table_entry(name: str, frame: pd.DataFrame, paths: "Paths") -> dict[str, object]:
    if "seed" in frame:  # the rows of all seeds come first, in case not all rows are shown
        frame = frame.sort_values("seed", key=lambda seed: seed.astype(str) != "all", kind="stable")
    return {
        "name": name,
        "size": f"{len(frame):,} rows",
        "link": relpath(paths.tables / f"{name}.csv", paths.report),
        "cut": MAX_ROWS if len(frame) > MAX_ROWS else None,
        "html": _table(frame.head(MAX_ROWS)),
    }


def main(arguments: list[str] | None = None) -> int:
    """Command line of the rules: one executed notebook as a page, or the index of pages."""
    parser = argparse.ArgumentParser(prog="python -m ecgstudy.report", description=main.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    page = commands.add_parser("page")
    page.add_argument("executed", type=Path)
    page.add_argument("page", type=Path)
    page.add_argument("--title", required=True)
    page.add_argument("--synthetic", action="store_true")
    index = commands.add_parser("index")
    index.add_argument("params", type=Path)
    index.add_argument("pages", nargs="*")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.command == "page":
            render_notebook(chosen.executed, chosen.page, title=chosen.title, synthetic=chosen.synthetic)
        else:
            _index_of(chosen.params, chosen.pages)
    except StudyError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _index_of(params: Path, pages: list[str]) -> None:
    from ecgstudy.datasets import is_synthetic
    from ecgstudy.study import Paths, load_study

    study = load_study(params)
    write_index(study, Paths(study.study), pages, synthetic=is_synthetic(study))


if __name__ == "__main__":
    sys.exit(main())
