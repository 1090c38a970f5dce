"""Executed notebooks → HTML pages that need no network, by nbconvert."""

import re
from collections.abc import Sequence
from pathlib import Path

import nbformat
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from pygments.formatters import HtmlFormatter

from ecgstudy import __version__
from ecgstudy.files import ROOT, read_json, write_text

TEMPLATE = Path(__file__).with_name("page.html.j2")
WIDGET = "application/vnd.jupyter.widget-view+json"
DOCUMENTS = ("methods", "arms", "attacks", "data", "limits", "power", "reproducibility")
"""Documents of ``docs/`` that the page of methods holds."""
NAMES = {
    "index": "Results",
    "01": "Data",
    "02": "Pretraining",
    "03": "Evaluation",
    "05": "One ECG",
    "methods": "Methods",
}
"""How a page's file name begins → what a reader sees."""


class MathRenderer(IPythonRenderer):
    """Markdown of notebooks, with formulas as MathML."""

    def inline_math(self, body: str) -> str:
        """A formula within a line."""
        return convert(body)

    def block_math(self, body: str) -> str:
        """A formula of its own."""
        return convert(body, display="block")


def render_notebook(
    executed: str | Path,
    out: str | Path,
    title: str,
    pages: Sequence[str] = (),
    synthetic: bool = False,
) -> None:
    """Write an executed notebook as a page, with the ``provenance.json`` beside it.

    Code is folded away, parameters come last, figures are embedded and described by
    the heading above them, formulas are MathML.

    Parameters
    ----------
    executed, out
        The notebook, and the file to write.
    title
        Of the study.
    pages
        File names beside `out` to link to.
    synthetic
        Whether the ECGs are simulated, which a banner then says.
    """
    notebook = nbformat.read(executed, as_version=4)
    provenance = read_json(Path(executed).with_name("provenance.json"))
    lines = [f"{key}: {value}" for key, value in provenance.items()]
    last = new_code_cell("\n".join(lines), metadata={"tags": ["provenance"]})
    cells = _order_cells(notebook.cells)
    notebook.cells = [*cells, new_markdown_cell("## Provenance"), last]
    _write_page(notebook, out, title, pages, synthetic)


def render_methods(out: str | Path, title: str, pages: Sequence[str] = ()) -> None:
    """Write documents of ``docs/`` as one page; of links to other files words stay.

    Parameters
    ----------
    out, title, pages
        As for `render_notebook`.
    """
    cells = []
    for name in DOCUMENTS:
        text = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
        text = re.sub(r"\[([^]]+)\]\((?!https?:)[^)\s]+\)", r"\1", text)
        cells.append(new_markdown_cell(re.sub("^#", "##", text, flags=re.MULTILINE)))
    _write_page(new_notebook(cells=cells), out, title, pages)


def _write_page(
    notebook: NotebookNode,
    out: str | Path,
    title: str,
    pages: Sequence[str],
    synthetic: bool = False,
) -> None:
    headings = _describe_images(notebook.cells)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"  # the same each time
    exporter = HTMLExporter(template_file=str(TEMPLATE))
    exporter.register_filter("markdown2html", render_markdown)
    resources = {
        "title": title,
        "pages": {name: _page_name(name) for name in pages},
        "here": Path(out).name,
        "headings": headings,
        "synthetic": synthetic,
        "version": __version__,
        "light": HtmlFormatter(style="friendly").get_style_defs(".highlight"),
        "dark": HtmlFormatter(style="github-dark").get_style_defs(".highlight"),
    }
    html, _ = exporter.from_notebook_node(notebook, resources)
    write_text(out, html.replace(f"{ROOT}/", ""))  # the study's place is no result


def render_markdown(source: str) -> str:
    """Markdown, with formulas, as HTML."""
    return MarkdownWithMath(renderer=MathRenderer(escape=False)).render(source)


def _order_cells(cells: list[NotebookNode]) -> list[NotebookNode]:
    """Parameters last, without what makes sense in a live notebook alone."""
    shown, parameters = [], []
    for cell in cells:
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if WIDGET not in o.get("data", ())]
        tags = set(cell.metadata.get("tags", ()))
        if tags & {"parameters", "injected-parameters"}:
            parameters.append(cell)
        elif "remove-cell" not in tags:
            shown.append(cell)
    heading = [new_markdown_cell("## Parameters")] if parameters else []
    return [*shown, *heading, *parameters]


def _describe_images(cells: list[NotebookNode]) -> list[str]:
    """Describe images by the heading they stand under; returns the second headings."""
    heading, found = "", []
    for cell in cells:
        if cell.cell_type == "markdown":
            found += re.findall(r"^## (.+)$", cell.source, re.MULTILINE)
            heading = found[-1] if found else heading
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.metadata.setdefault("image/png", {})["alt"] = heading
    return found


def _page_name(file: str) -> str:
    stem = Path(file).stem
    number = stem.partition("_")[0]
    detail = stem.partition("-")[2]
    return f"{NAMES.get(number, stem)} {detail}".strip()
