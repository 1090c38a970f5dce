"""Pages as a browser lays them out: at three widths, in the dark, on paper."""

import shutil

import pytest
from browser import CHROMIUM, browser

from ecgstudy.running.pages.index import write_index
from ecgstudy.study import ROOT, Paths, load_study

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed"),
]
COMMITTED = sorted((ROOT / "outputs").glob("*/report/0*.html"))
A4 = 688
"""Width between the margins of an A4 page, in CSS pixels."""
CONTRASTS = """(() => {
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = node => {
    for (; node; node = node.parentElement) {
      const colour = rgb(getComputedStyle(node).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const texts = [...document.querySelectorAll("body *")].filter(node => node.checkVisibility() &&
    !["SCRIPT", "STYLE"].includes(node.tagName) &&
    [...node.childNodes].some(child => child.nodeType === 3 && child.textContent.trim()));
  return texts.map(node => {
    const style = getComputedStyle(node), svg = node.tagName === "text";
    const pair = [light(rgb(svg ? style.fill : style.color)), light(behind(node))].sort((a, b) => b - a);
    return [(pair[0] + 0.05) / (pair[1] + 0.05), node.textContent.trim().slice(0, 40)];
  });
})()"""
"""Contrast ratio (WCAG 2.2) and beginning of every visible text."""


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """Pages made now from the committed tables: a study's, and the methods."""
    root = tmp_path_factory.mktemp("outputs")
    for part in ("tables", "figures"):
        shutil.copytree(ROOT / f"outputs/mitdb/{part}", root / "mitdb" / part)
    study = load_study(ROOT / "params/mitdb.yaml")
    write_index(study, Paths("mitdb", root), [], synthetic=True)
    folder = root / "mitdb/report"
    return {"study": folder / "index.html", "methods": folder / "methods.html"}


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


def beyond(chromium, page, width, **look):
    """How many pixels wider than the window the page is, and what sticks out."""
    chromium.show(page, width, **look)
    extra = chromium.value("document.documentElement.scrollWidth - innerWidth")
    out = "[...document.querySelectorAll('body *')].filter(n => n.getBoundingClientRect().right > innerWidth)"
    return extra, chromium.value(
        f"{out}.slice(0, 3).map(n => n.outerHTML.slice(0, 80))"
    ) if extra else []


@pytest.mark.parametrize("width", [390, 820, 1440])
@pytest.mark.parametrize("name", ["study", "methods"])
def test_no_page_is_wider_than_the_window(chromium, reports, name, width):
    assert beyond(chromium, reports[name], width) == (0, [])


@pytest.mark.parametrize(
    "page", COMMITTED, ids=lambda page: f"{page.parts[-3]}/{page.stem}"
)
def test_no_committed_notebook_page_is_wider_than_the_window(chromium, page):
    for width in (390, 820, 1440):
        assert beyond(chromium, page, width) == (0, []), width


@pytest.mark.parametrize("name", ["study", "methods"])
def test_printed_pages_fit_the_paper(chromium, reports, name):
    assert beyond(chromium, reports[name], A4, printed=True) == (0, [])


def test_the_first_screen_holds_answer_comparisons_claims_and_caveats(
    chromium, reports
):
    chromium.show(reports["study"], 1440)
    for part in (".lead", ".forest", ".claims", ".caveats"):
        assert (
            chromium.value(
                f"document.querySelector('{part}').getBoundingClientRect().bottom"
            )
            <= 900
        ), part


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("name", ["study", "methods"])
def test_every_text_stands_out_from_what_is_behind_it(chromium, reports, name, dark):
    chromium.show(reports[name], 1440, dark=dark)
    assert chromium.value("matchMedia('(prefers-color-scheme: dark)').matches") is dark
    assert [found for found in chromium.value(CONTRASTS) if found[0] < 4.5] == []
    assert (
        chromium.value("getComputedStyle(document.body).backgroundColor")
        == "rgb(255, 255, 255)"
    ) is not dark


def test_paper_shows_the_claims_that_a_screen_folds_away(chromium, reports):
    height = "document.querySelector('details.kept li').getBoundingClientRect().height"
    chromium.show(reports["study"], A4, printed=True)
    assert (
        chromium.value(
            f"document.querySelector('details.kept li').checkVisibility() && {height}"
        )
        > 0
    )
    assert (
        chromium.value("document.querySelector('.tables details').checkVisibility()")
        is False
    )
