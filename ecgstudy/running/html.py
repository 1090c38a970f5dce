"""Executed notebooks and documents → self-contained HTML pages; the first is `ecgstudy.running.pages.index`."""

import argparse
import ast
import io
import json
import re
import sys
from base64 import b64decode, b64encode
from html import escape
from pathlib import Path

if __name__ == "__main__":
    # jsonschema, which nbformat imports, would compile a grammar of URIs for a second; no notebook needs it.
    sys.modules["rfc3987_syntax"] = None

import nbformat
from bs4 import BeautifulSoup
from jinja2 import Environment, FileSystemLoader
from latex2mathml.converter import convert
from markupsafe import Markup
from nbconvert.filters import Highlight2HTML, ansi2html
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from PIL import Image
from pygments.formatters import HtmlFormatter

from ecgstudy import __version__
from ecgstudy.errors import StudyError, command
from ecgstudy.files import ROOT, write_text

TEMPLATES = Path(__file__).parent / "pages/templates"
BANNER = (
    "Simulated ECGs: this page proves the machinery only, it is no evidence about ECGs"
)
DOCUMENTS = ("methods", "data", "limits", "power", "reproducibility")
"""Documents of ``docs/`` that a report's page of methods holds."""
LINKS = (
    "src",
    "href",
    "srcset",
    "data",
    "poster",
    "action",
    "background",
    "xlink:href",
)
TABLE_ID = re.compile(r"\bT_[0-9a-f]{5}(?=_|\b)")
REMOTE = re.compile(r"(?:url\(|@import)\s*[\"']?\s*(?!data:|#)([^\"')\s;]+)")


def render_notebook(
    executed: str | Path, out: str | Path, *, title: str, synthetic: bool
) -> None:
    """Write an executed notebook as one HTML file that needs no network.

    Code is folded away, parameters come last, figures are embedded with their descriptions and formulas
    are MathML. ``provenance.json`` beside the notebook is shown if there is one.

    Raises
    ------
    StudyError
        When the notebook cannot be read, or refers to something outside the page.
    """
    executed = Path(executed)
    try:
        notebook = nbformat.read(executed, as_version=4)
    except (OSError, ValueError, nbformat.reader.NotJSONError) as error:
        raise StudyError(
            f"{executed}: not a readable notebook ({error}); execute it again"
        ) from error
    cells = [
        c
        for c in notebook.cells
        if not _tags(c) & {"parameters", "injected-parameters", "remove-cell"}
    ]
    _describe_images(cells, title)
    for cell in cells:
        if cell.cell_type == "code":
            cell.outputs = _joined_streams(cell.outputs)
    content = {"cells": cells, "parameters": _parameters(notebook.cells)}
    content["provenance"] = read_provenance(executed.parent)
    write_page("notebook.html.j2", out, title=title, synthetic=synthetic, **content)


def write_methods(
    out: str | Path, names: tuple[str, ...] = DOCUMENTS, folder: Path = ROOT / "docs"
) -> None:
    """Write the Markdown documents `names` of `folder` as one page, formulas included.

    Links among them stay on the page. Of links to other files only the words are kept: a report that is
    sent to somebody takes no other file along.
    """

    def leads(link: re.Match) -> str:
        file, _, part = link[2].partition("#")
        if Path(file).stem in names and file.endswith(".md"):
            return f"[{link[1]}](#{part or Path(file).stem})"
        return link[1]

    texts = {
        name: (folder / f"{name}.md").read_text(encoding="utf-8") for name in names
    }
    local = re.compile(r"\[([^][]+)\]\((?![a-z]+:|#)([^)\s]+)\)")
    documents = {name: local.sub(leads, text) for name, text in texts.items()}
    write_page("methods.html.j2", out, title="Methods", documents=documents)


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


def write_page(template: str, out: str | Path, **content: object) -> None:
    """Write a page of ``templates/``, whole, after `check_self_contained`.

    Raises
    ------
    StudyError
        When it would load something from elsewhere.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True
    )
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
    tables: dict[
        str, str
    ] = {}  # pandas draws their ids at random: numbers keep the page the same each time
    html = TABLE_ID.sub(
        lambda found: tables.setdefault(found[0], f"T_{len(tables) + 1}"), html
    )
    if outside := check_self_contained(html):
        raise StudyError(
            f"{out}: the page would load {outside[0]!r} from elsewhere; embed it or leave it out"
        )
    write_text(out, html)


def _css() -> Markup:
    light, dark = (
        HtmlFormatter(style=s).get_style_defs(".highlight")
        for s in ("friendly", "github-dark")
    )
    own = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    return Markup(
        f"{light}\n@media screen and (prefers-color-scheme: dark) {{ {dark} }}\n{own}"
    )


def _markdown(source: str) -> Markup:
    renderer = IPythonRenderer(escape=False, exclude_anchor_links=True)
    renderer.inline_math = lambda body: _mathml(body, "inline")
    renderer.block_math = lambda body: _mathml(body, "block")
    html = MarkdownWithMath(renderer=renderer).render(source)
    # Wide tables scroll in a box of their own, so that pages never do.
    return Markup(
        html.replace("<table>", '<div class="scroll"><table>').replace(
            "</table>", "</table></div>"
        )
    )


def _mathml(tex: str, display: str) -> str:
    try:
        return convert(tex.strip(), display=display)
    except (
        Exception
    ):  # the converter has no common error class; the formula's source is readable too
        return f"<code>{escape(tex)}</code>"


def _tags(cell: nbformat.NotebookNode) -> set[str]:
    return set(cell.metadata.get("tags", []))


def _parameters(cells: list) -> dict[str, object]:
    """What the `parameters` cell and papermill's injected one assign, the latter winning."""
    found = {}
    for cell in cells:
        if cell.cell_type == "code" and _tags(cell) & {
            "parameters",
            "injected-parameters",
        }:
            for node in ast.parse(cell.source).body:
                if isinstance(node, ast.Assign) and isinstance(
                    node.targets[0], ast.Name
                ):
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
                output.metadata.setdefault("image/png", {}).setdefault(
                    "alt", f"Figure: {heading}"
                )


def _joined_streams(outputs: list) -> list:
    """`outputs`, with what a stream says without a pause in one piece."""
    joined: list = []
    for output in outputs:
        last = joined[-1] if joined else None
        if (
            last
            and output.output_type == last.output_type == "stream"
            and output.name == last.name
        ):
            last.text += output.text
        else:
            joined.append(output)
    return joined


def _shown(output: nbformat.NotebookNode) -> Markup:
    data = output.data
    if "image/png" in data:
        return embedded_figure(
            b64decode(data["image/png"]), output.metadata["image/png"]["alt"]
        )
    if "text/html" in data:
        return Markup('<div class="scroll">{}</div>').format(Markup(data["text/html"]))
    if "image/svg+xml" in data:
        return Markup("<figure>{}</figure>").format(Markup(data["image/svg+xml"]))
    if "text/markdown" in data:
        return Markup('<section class="prose">{}</section>').format(
            _markdown(data["text/markdown"])
        )
    if (
        "application/vnd.jupyter.widget-view+json" in data
    ):  # controls and progress bars need a kernel
        return Markup("")
    return Markup('<pre class="output">{}</pre>').format(data.get("text/plain", ""))


def embedded_figure(
    png: bytes, alt: str, caption: Markup | str = "", limit: int | None = None
) -> Markup:
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
    return Markup('<figure><img src="{}" alt="{}" width="{}">{}</figure>').format(
        uri, alt, width, text
    )


def read_provenance(folder: Path) -> dict[str, object]:
    """What ``provenance.json`` of `folder` says, as a flat table; empty without it."""
    file = folder / "provenance.json"
    if not file.exists():
        return {}
    found = json.loads(file.read_text(encoding="utf-8"))
    found |= found.pop("parameters", None) or {}
    if "seconds" in found:
        found["wall time (s)"] = round(found.pop("seconds"), 1)
    return found


@command
def main(arguments: list[str] | None) -> None:
    """Command line of the rules: one executed notebook as a page, or the index of pages."""
    parser = argparse.ArgumentParser(
        prog="python -m ecgstudy.running.html", description=main.__doc__
    )
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
    if chosen.command == "page":
        render_notebook(
            chosen.executed, chosen.page, title=chosen.title, synthetic=chosen.synthetic
        )
    else:
        _index_of(chosen.params, chosen.pages)


def _index_of(params: Path, pages: list[str]) -> None:
    # Pages of notebooks, made by processes of their own, need not wait for torch.
    from ecgstudy.datasets.prepare import is_synthetic
    from ecgstudy.running.pages.index import write_index
    from ecgstudy.study import Paths, load_study

    study = load_study(params)
    write_index(study, Paths(study.study), pages, synthetic=is_synthetic(study))


if __name__ == "__main__":
    sys.exit(main())
