"""Pages: one file without network, code folded, parameters and provenance last."""

import json
import re

import nbformat
import pytest
from browser import CHROMIUM, browser
from bs4 import BeautifulSoup
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from ecgstudy.running import html
from ecgstudy.study import ROOT

PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAA"
    "AABJRU5ErkJggg=="
)
WIDE = "<table><tr>" + "<td>a long entry</td>" * 40 + "</tr></table>"
REMOTE = re.compile(r"(?:url\(|@import)\s*[\"']?(?!data:|#)")


def outside(page):
    """Everything that a browser would have to load from elsewhere to show `page`."""
    soup, found = BeautifulSoup(page, "html.parser"), []
    for tag in soup.find_all(["img", "script", "link", "iframe", "source", "object"]):
        sources = [tag.get(name, "") for name in ("src", "href", "srcset", "data")]
        found += [source for source in sources if source and source[:5] != "data:"]
    return found + REMOTE.findall(page)


def cell(source, *outputs, tags=()):
    return new_code_cell(source, outputs=list(outputs), metadata={"tags": list(tags)})


def shown(**data):
    data = {name.replace("_", "/"): value for name, value in data.items()}
    return new_output("display_data", data)


@pytest.fixture
def executed(tmp_path):
    """An executed notebook, with provenance beside it."""
    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "a"}}
    notebook = new_notebook(cells=[
        new_markdown_cell("# Title\n\nWith $e^{x_i}$ and\n\n$$\\sum_k w_k$$\n"),
        cell("params = 'a'\nseed = 0", tags=["parameters"]),
        cell("# Parameters\nseed = 7", tags=["injected-parameters"]),
        new_markdown_cell("## One figure"),
        cell(f"print('{ROOT}/outputs')", shown(image_png=PNG), shown(text_html=WIDE)),
        cell("live()", tags=["remove-cell"]),
        cell("bar()", new_output("display_data", widget)),
        cell("x", new_output("stream", name="stderr", text="a warning")),
    ])  # fmt: skip
    path = tmp_path / "step" / "notebook.ipynb"
    path.parent.mkdir()
    nbformat.write(notebook, path)
    provenance = {"key": "abc", "parameters": {"seed": 7}, "torch": "2.13"}
    (path.parent / "provenance.json").write_text(json.dumps(provenance))
    return path


@pytest.fixture
def page(executed, tmp_path):
    return render(executed, tmp_path / "report/index.html")


def render(executed, out, synthetic=False):
    pages = ["index.html", "01_prepare_data-ptbxl.html", "methods.html"]
    html.render_notebook(executed, out, "A study", pages, synthetic)
    return out.read_text(encoding="utf-8")


def test_a_page_needs_nothing_from_elsewhere(page):
    assert outside(page) == []
    assert f"data:image/png;base64,{PNG[:40]}" in page


def test_formulas_are_mathml(page):
    assert page.count("<math") == 2
    assert 'display="block"' in page
    assert "e^{x_i}" not in page


def test_figures_are_described_by_the_heading_above(page):
    (image,) = BeautifulSoup(page, "html.parser").find_all("img")
    assert image["alt"] == "One figure"


def test_code_is_folded_and_what_needs_a_kernel_is_left_out(page):
    soup = BeautifulSoup(page, "html.parser")
    folded = soup.find_all("details", class_="code")
    assert len(folded) == 3
    assert not any(part.has_attr("open") for part in folded)
    assert "live()" not in page
    assert "model_id" not in page
    assert "a warning" in soup.find("details", class_="messages").get_text()


def test_parameters_and_provenance_come_last(page):
    soup = BeautifulSoup(page, "html.parser")
    headings = [h.get_text().rstrip("¶") for h in soup.find_all("h2")]
    assert headings == ["One figure", "Parameters", "Provenance"]
    end = page[page.index('id="Parameters"') :]
    assert "params" in end
    assert end.index("# Parameters") < end.index("torch: 2.13")
    assert "seed" not in page[: page.index('id="Parameters"')].split("</style>")[1]


def test_pages_link_to_each_other_and_to_their_sections(page):
    soup = BeautifulSoup(page, "html.parser")
    links = {a.get_text(): a["href"] for a in soup.nav.find_all("a")}
    assert links["Results"] == "index.html"
    assert links["Data ptbxl"] == "01_prepare_data-ptbxl.html"
    assert links["Methods"] == "methods.html"
    assert soup.nav.find(attrs={"aria-current": "page"}).get_text() == "Results"
    (contents,) = soup.find_all("nav", class_="contents")
    for link in contents.find_all("a"):
        assert soup.find(id=link["href"][1:]), link


def test_only_simulated_ecgs_carry_the_banner(executed, page, tmp_path):
    assert "Simulated ECGs" not in page
    assert "Simulated ECGs" in render(executed, tmp_path / "a.html", synthetic=True)


def test_pages_do_not_tell_where_the_study_lies_and_are_the_same_each_time(
    executed, page, tmp_path
):
    assert str(ROOT) not in page
    assert render(executed, tmp_path / "report/index.html") == page


def test_methods_are_one_page_with_formulas_and_without_dead_links(tmp_path):
    out = tmp_path / "methods.html"
    html.render_methods(out, "A study", ["index.html", "methods.html"])
    page = out.read_text(encoding="utf-8")
    soup = BeautifulSoup(page, "html.parser")
    assert outside(page) == []
    assert len(soup.find_all("h2")) >= len(html.DOCUMENTS)
    assert "<math" in page
    for link in soup.main.find_all("a"):
        if link["href"].startswith("#"):
            assert soup.find(id=link["href"][1:]), link
        else:
            assert link["href"].startswith("http"), link


def test_no_committed_page_needs_anything_from_elsewhere_or_links_to_nothing():
    pages = sorted((ROOT / "outputs").glob("*/report/*.html"))
    assert pages
    for path in pages:
        page = path.read_text(encoding="utf-8")
        assert REMOTE.findall(page) == [], path
        assert re.findall('src="(?!data:)', page) == [], path
        for link in re.findall('href="([^"#]+)', page):
            assert link.startswith("http") or (path.parent / link).exists(), (
                path,
                link,
            )


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_no_page_is_wider_than_the_window(executed, page, tmp_path):
    methods = tmp_path / "report/methods.html"
    html.render_methods(methods, "A study", ["index.html", "methods.html"])
    committed = sorted((ROOT / "outputs").glob("*/report/index.html"))
    with browser(tmp_path / "profile") as chromium:
        for path in [tmp_path / "report/index.html", methods, *committed]:
            for width in (390, 820, 1440):
                chromium.show(path, width)
                wide = chromium.value("document.documentElement.scrollWidth")
                assert wide == width, (path, width)
