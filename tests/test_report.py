"""Pages need no network, hide the noise, keep the values and link only to what exists."""

import json
import shutil
import subprocess

import nbformat
import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from matplotlib.figure import Figure
from nbformat import v4

from ecgstudy.errors import StudyError
from ecgstudy.plotting import save_figure
from ecgstudy.report import BANNER, check_self_contained, render_notebook, write_index
from ecgstudy.study import ROOT, Paths, Study

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def executed_notebook(path, extra=()):
    """A small notebook as papermill leaves it: parameters, prose, a table, a figure, messages."""
    tagged = [("parameters", "arm = 'rocl'\nseed = 0"), ("injected-parameters", "# Parameters\nseed = 3")]
    cells = [v4.new_code_cell(code, metadata={"tags": [tag]}) for tag, code in tagged]
    prose = (
        "# Robust AUROC\n\nLoss $\\frac{a_i}{\\tau}$, see [Kim 2020](https://arxiv.org/abs/2006.07589).\n\n"
    )
    prose += "$$D_i = \\sum_k w_k$$"
    cells.append(v4.new_markdown_cell(prose))
    table = pd.DataFrame({"arm": ["rocl"], "auroc": [0.123]}).to_html()
    outputs = [
        v4.new_output("stream", name="stderr", text="progress 100%"),
        v4.new_output("stream", name="stdout", text="a < b"),
        v4.new_output("display_data", data={"text/html": table, "text/plain": "x"}),
        v4.new_output("display_data", data={"image/png": PNG}, metadata={"image/png": {"alt": "An ε curve"}}),
        v4.new_output("display_data", data={"image/png": PNG}),
        *extra,
    ]
    cells.append(v4.new_code_cell("show('<table>')", outputs=outputs))
    nbformat.write(v4.new_notebook(cells=cells), path)
    return path


def page(path, **extra) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser", **extra)


@pytest.fixture
def rendered(tmp_path):
    executed = executed_notebook(tmp_path / "03.ipynb")
    render_notebook(executed, tmp_path / "page.html", title="Evaluation", synthetic=True)
    return page(tmp_path / "page.html")


def test_a_page_needs_nothing_from_elsewhere(rendered):
    assert check_self_contained(str(rendered)) == []
    assert [a["href"] for a in rendered.main.find_all("a")] == ["https://arxiv.org/abs/2006.07589"]


def test_formulas_become_mathml(rendered):
    inline, block = rendered.find_all("math")
    assert inline.mfrac is not None
    assert (inline["display"], block["display"]) == ("inline", "block")
    assert "$" not in rendered.find("section", class_="prose").get_text()


def test_figures_are_embedded_and_described(rendered):
    images = rendered.find_all("img")
    assert [image["alt"] for image in images] == ["An ε curve", "Figure: Robust AUROC"]
    assert all(image["src"] == f"data:image/png;base64,{PNG}" for image in images)


def test_code_is_folded_and_tables_are_scrollable(rendered):
    (code,) = rendered.find_all("details", class_="code")
    assert not code.has_attr("open")
    assert code.find("div", class_="highlight").get_text().strip() == "show('<table>')"
    assert rendered.find("details", class_="messages").pre.get_text() == "progress 100%"
    assert rendered.find("pre", class_="output").get_text() == "a < b"
    assert "0.123" in rendered.find("div", class_="scroll").get_text()


def test_injected_parameters_win_and_come_last(rendered):
    last = rendered.main.find_all("section")[-1]
    rows = [[cell.get_text() for cell in row.find_all(["th", "td"])] for row in last.find_all("tr")]
    assert rows == [["arm", "rocl"], ["seed", "3"]]


def test_only_simulated_ecgs_carry_the_banner(tmp_path, rendered):
    assert rendered.find("p", class_="banner").get_text() == BANNER
    executed = tmp_path / "03.ipynb"
    render_notebook(executed, tmp_path / "real.html", title="t", synthetic=False)
    assert BANNER not in (tmp_path / "real.html").read_text(encoding="utf-8")


def test_provenance_is_given_or_found_beside_the_notebook(tmp_path):
    executed, found = executed_notebook(tmp_path / "03.ipynb"), {"commit": "abc", "seconds": 12.34}
    (tmp_path / "provenance.json").write_text(json.dumps({**found, "parameters": {"seed": 3}}))
    render_notebook(executed, tmp_path / "a.html", title="t", synthetic=False)
    rows = {row.th.get_text(): row.td.get_text() for row in page(tmp_path / "a.html").footer.find_all("tr")}
    assert rows == {"commit": "abc", "seed": "3", "wall time (s)": "12.3"}
    render_notebook(executed, tmp_path / "b.html", title="t", synthetic=False, provenance={"device": "CPU"})
    assert "CPU" in page(tmp_path / "b.html").footer.get_text()


def test_pages_do_not_tell_where_the_study_lies(tmp_path):
    said = v4.new_output("stream", name="stdout", text=f"wrote {ROOT}/outputs/tiny")
    executed = executed_notebook(tmp_path / "03.ipynb", [said])
    render_notebook(executed, tmp_path / "a.html", title="t", synthetic=False)
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "wrote outputs/tiny" in text
    assert str(ROOT) not in text


def test_an_output_that_loads_from_elsewhere_is_refused(tmp_path):
    remote = v4.new_output("display_data", data={"text/html": "<img src='https://example.org/x.png'>"})
    executed = executed_notebook(tmp_path / "03.ipynb", [remote])
    with pytest.raises(StudyError, match=r"https://example\.org/x\.png"):
        render_notebook(executed, tmp_path / "a.html", title="t", synthetic=False)
    assert not (tmp_path / "a.html").exists()


def test_an_unreadable_notebook_is_named(tmp_path):
    (tmp_path / "cut.ipynb").write_text('{"cells": [')
    with pytest.raises(StudyError, match=r"cut\.ipynb: not a readable notebook"):
        render_notebook(tmp_path / "cut.ipynb", tmp_path / "a.html", title="t", synthetic=False)


@pytest.mark.parametrize(
    ("html", "found"),
    [
        ("<script src='https://cdn.org/require.js'></script>", ["https://cdn.org/require.js"]),
        ("<link rel=stylesheet href=//cdn.org/a.css>", ["//cdn.org/a.css"]),
        ("<img src='figures/a.png'>", ["figures/a.png"]),
        ("<style>@import 'https://a.org/f.css'; p {}</style>", ["https://a.org/f.css"]),
        ("<style>@font-face { src: url(https://a.org/f.woff) }</style>", ["https://a.org/f.woff"]),
        ("<p style=\"background: url('http://a.org/b.png')\">", ["http://a.org/b.png"]),
        ("<script>import('https://cdn.org/m.js')</script>", ["https://cdn.org/m.js"]),
        ("<a href='https://arxiv.org'>paper</a> <a href='../tables/a.csv'>csv</a>", []),
        ("<img src='data:image/png;base64,aa'><style>p { background: url(data:x) }</style>", []),
        ("<pre>&lt;script src='https://cdn.org/x.js'&gt;</pre>", []),
    ],
)
def test_remote_references_are_found_and_links_are_not(html, found):
    assert check_self_contained(html) == found


def a_study(seeds=(0, 1, 2)) -> Study:
    return Study.model_validate({
        "study": "made", "title": "Made study", "datasets": {"builtin": {"headline_epsilon_mv": 0.02}},
        "arms": ["rocl", "rocl-ip", "rocl-hn"], "seeds": list(seeds), "training": {"epochs": 1},
    })  # fmt: skip


@pytest.fixture
def paths(tmp_path):
    """A study folder with tables, figures and one page."""
    paths = Paths("made", tmp_path)
    paths.tables.mkdir(parents=True)
    paths.report.mkdir()
    (paths.report / "04_figures.html").write_text("page")
    row = {"dataset": "builtin", "protocol": "slf", "attack": "pgd-margin", "epsilon_mv": 0.02,
           "standard": "rocl", "family": "primary", "p": 0.01, "masking_ok": True,
           "clean_delta": 0.001, "beyond_seeds": True}  # fmt: skip
    rows = [
        {**row, "adaptive": "rocl-ip", "delta": 0.031, "ci_low": 0.01, "ci_high": 0.05, "p_holm": 0.02},
        {**row, "adaptive": "rocl-hn", "delta": -0.004, "ci_low": -0.02, "ci_high": 0.01, "p_holm": 0.6},
    ]
    pd.DataFrame(rows).to_csv(paths.tables / "contrasts.csv", index=False)
    many = pd.DataFrame({"dataset": "builtin", "arm": "rocl", "seed": ["0"] * 250 + ["all"],
                         "protocol": "slf", "n_records": 40, "n_patients": 20,
                         "auroc_shared": np.linspace(0, 1, 251)})  # fmt: skip
    many.to_csv(paths.tables / "robust_auroc.csv", index=False)
    claims = {"claim": ["1. Inferior positives help"], "verdict": ["inconclusive"], "evidence": ["long"]}
    pd.DataFrame(claims).to_csv(paths.tables / "claims.csv", index=False)
    for name in ("contrasts", "class_counts"):
        save_figure(Figure((2, 1)), paths.figures, name, many.head(), alt=f"{name} <by arm>", synthetic=True)
    return paths


def test_the_index_answers_the_question_first(paths):
    write_index(a_study(), paths, ["04_figures.html"], synthetic=True)
    index = page(paths.report / "index.html")
    answer = index.find("section", class_="answer")
    assert "higher in 1, lower in 0 and undecided in 1 of 2" in answer.get_text()
    rows = [[cell.get_text() for cell in row.find_all("td")] for row in answer.tbody.find_all("tr")]
    assert rows[0] == [
        "builtin", "rocl-ip − rocl", "higher", "+0.031", "+0.010 to +0.050", "0.02", "+0.001", "0.02"
    ]  # fmt: skip
    assert rows[1][2] == "undecided"
    assert "40 records of 20 patients" in answer.get_text()
    assert index.find("p", class_="banner").get_text() == BANNER


def test_the_index_needs_nothing_from_elsewhere_and_has_no_dead_link(paths):
    write_index(a_study(), paths, ["04_figures.html", "missing.html"], synthetic=True)
    html = (paths.report / "index.html").read_text(encoding="utf-8")
    assert check_self_contained(html) == []
    links = [a["href"] for a in page(paths.report / "index.html").find_all("a")]
    assert {"04_figures.html", "../tables/contrasts.csv", "../figures/contrasts.svg"} <= set(links)
    assert all((paths.report / link).resolve().exists() for link in links)


def test_the_index_describes_its_figures(paths):
    write_index(a_study(), paths, [], synthetic=True)
    images = page(paths.report / "index.html").find_all("img")
    assert [image["alt"] for image in images] == ["contrasts <by arm>", "class_counts <by arm>"]


def test_long_tables_are_cut_after_the_rows_of_all_seeds(paths):
    write_index(a_study(), paths, [], synthetic=True)
    (table,) = [
        d for d in page(paths.report / "index.html").find_all("details") if "251 rows" in d.get_text()
    ]
    rows = table.tbody.find_all("tr")
    assert len(rows) == 200
    assert rows[0].find_all("td")[2].get_text() == "all"


def test_few_seeds_and_failed_checks_limit_the_answer(paths):
    table = pd.read_csv(paths.tables / "contrasts.csv")
    table["masking_ok"], table["beyond_seeds"] = [False, True], False
    table.to_csv(paths.tables / "contrasts.csv", index=False)
    write_index(a_study(seeds=(0, 1)), paths, [], synthetic=False)
    answer = page(paths.report / "index.html").find("section", class_="answer").get_text()
    assert "Seeds: 2; with fewer than 3 nothing is claimed" in answer
    assert "higher in 0, lower in 0 and undecided in 2 of 2" in answer
    assert "rocl-ip − rocl †" in answer
    assert "masking check fails" in answer


def test_a_study_without_primary_comparisons_says_so(tmp_path):
    write_index(a_study(), Paths("made", tmp_path), [], synthetic=False)
    assert "none of the primary comparisons" in (tmp_path / "made/report/index.html").read_text()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_a_browser_shows_a_page_offline(tmp_path):
    executed = executed_notebook(tmp_path / "03.ipynb")
    render_notebook(executed, tmp_path / "page.html", title="Evaluation", synthetic=True)
    flags = "--headless --no-sandbox --disable-gpu --disable-background-networking --dump-dom"
    rules = "--host-resolver-rules=MAP * ~NOTFOUND"
    call = [
        "chromium",
        *flags.split(),
        rules,
        f"--user-data-dir={tmp_path / 'profile'}",
        (tmp_path / "page.html").as_uri(),
    ]
    shown = subprocess.run(call, capture_output=True, text=True, timeout=120, check=True).stdout
    assert "Robust AUROC" in shown
    assert "<math" in shown
