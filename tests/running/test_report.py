"""Pages need no network, hide the noise, keep the values and link only to what exists."""

import json
import shutil
import subprocess

import nbformat
import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from nbformat import v4

from ecgstudy.errors import StudyError
from ecgstudy.plots.style import save_figure
from ecgstudy.running.html import (
    BANNER,
    check_self_contained,
    render_notebook,
    write_methods,
)
from ecgstudy.running.pages.forest import forest
from ecgstudy.running.pages.index import write_index
from ecgstudy.study import ROOT, Paths, Study

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def executed_notebook(path, extra=()):
    """A small notebook as papermill leaves it: parameters, prose, a table, a figure, messages."""
    tagged = [
        ("parameters", "arm = 'rocl'\nseed = 0"),
        ("injected-parameters", "# Parameters\nseed = 3"),
    ]
    cells = [v4.new_code_cell(code, metadata={"tags": [tag]}) for tag, code in tagged]
    prose = "# Robust AUROC\n\nLoss $\\frac{a_i}{\\tau}$, see [Kim 2020](https://arxiv.org/abs/2006.07589).\n\n"
    prose += "$$D_i = \\sum_k w_k$$"
    cells.append(v4.new_markdown_cell(prose))
    table = pd.DataFrame({"arm": ["rocl"], "auroc": [0.123]}).to_html()
    outputs = [
        v4.new_output("stream", name="stderr", text="progress 100%"),
        v4.new_output("stream", name="stdout", text="a < b"),
        v4.new_output("display_data", data={"text/html": table, "text/plain": "x"}),
        v4.new_output(
            "display_data",
            data={"image/png": PNG},
            metadata={"image/png": {"alt": "An ε curve"}},
        ),
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
    render_notebook(
        executed, tmp_path / "page.html", title="Evaluation", synthetic=True
    )
    return page(tmp_path / "page.html")


def test_a_page_needs_nothing_from_elsewhere(rendered):
    assert check_self_contained(str(rendered)) == []
    assert [a["href"] for a in rendered.main.find_all("a")] == [
        "https://arxiv.org/abs/2006.07589"
    ]


def test_formulas_become_mathml(rendered):
    inline, block = rendered.find_all("math")
    assert inline.mfrac is not None
    assert (inline["display"], block["display"]) == ("inline", "block")
    assert "$" not in rendered.find("section", class_="prose").get_text()


def test_progress_bars_and_controls_that_need_a_kernel_are_left_out(tmp_path):
    view = {
        "application/vnd.jupyter.widget-view+json": {"model_id": "1"},
        "text/plain": "0/5 [00:00<?, ?it/s]",
    }
    executed = executed_notebook(
        tmp_path / "03.ipynb", [v4.new_output("display_data", data=view)]
    )
    render_notebook(
        executed, tmp_path / "page.html", title="Evaluation", synthetic=True
    )
    assert "it/s" not in page(tmp_path / "page.html").get_text()


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
    rows = [
        [cell.get_text() for cell in row.find_all(["th", "td"])]
        for row in last.find_all("tr")
    ]
    assert rows == [["arm", "rocl"], ["seed", "3"]]


def test_only_simulated_ecgs_carry_the_banner(tmp_path, rendered):
    assert rendered.find("p", class_="banner").get_text() == BANNER
    executed = tmp_path / "03.ipynb"
    render_notebook(executed, tmp_path / "real.html", title="t", synthetic=False)
    assert BANNER not in (tmp_path / "real.html").read_text(encoding="utf-8")


def test_provenance_is_found_beside_the_notebook(tmp_path):
    executed, found = (
        executed_notebook(tmp_path / "03.ipynb"),
        {"commit": "abc", "seconds": 12.34},
    )
    (tmp_path / "provenance.json").write_text(
        json.dumps({**found, "parameters": {"seed": 3}})
    )
    render_notebook(executed, tmp_path / "a.html", title="t", synthetic=False)
    rows = {
        row.th.get_text(): row.td.get_text()
        for row in page(tmp_path / "a.html").footer.find_all("tr")
    }
    assert rows == {"commit": "abc", "seed": "3", "wall time (s)": "12.3"}


def test_pages_do_not_tell_where_the_study_lies(tmp_path):
    said = v4.new_output("stream", name="stdout", text=f"wrote {ROOT}/outputs/tiny")
    executed = executed_notebook(tmp_path / "03.ipynb", [said])
    render_notebook(executed, tmp_path / "a.html", title="t", synthetic=False)
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert "wrote outputs/tiny" in text
    assert str(ROOT) not in text


def test_messages_in_a_row_are_one_fold(tmp_path):
    def said(name, *texts):
        return [v4.new_output("stream", name=name, text=text) for text in texts]

    extra = [
        *said("stderr", "one\n", "two\n", "three\n"),
        *said("stdout", "a\n", "b\n"),
        *said("stderr", "four\n"),
    ]
    render_notebook(
        executed_notebook(tmp_path / "a.ipynb", extra),
        tmp_path / "a.html",
        title="",
        synthetic=False,
    )
    folds = [
        fold.pre.text for fold in page(tmp_path / "a.html").select("details.messages")
    ]
    assert folds == ["progress 100%", "one\ntwo\nthree\n", "four\n"]
    assert page(tmp_path / "a.html").select("pre.output")[-1].text == "a\nb\n"


def test_styled_tables_are_the_same_bytes_each_time_and_keep_their_styles(tmp_path):
    pages = []
    for name in "ab":
        styled = [
            pd.DataFrame({"x": [i]}).style.set_properties(color="red").to_html()
            for i in (1, 2)
        ]
        outputs = [
            v4.new_output("display_data", data={"text/html": html}) for html in styled
        ]
        executed = executed_notebook(tmp_path / f"{name}.ipynb", outputs)
        render_notebook(executed, tmp_path / f"{name}.html", title="", synthetic=False)
        pages.append((tmp_path / f"{name}.html").read_text(encoding="utf-8"))
    assert pages[0] == pages[1]
    found = page(tmp_path / "a.html")
    assert [table["id"] for table in found.find_all("table", id=True)] == ["T_1", "T_2"]
    for table in found.find_all("table", id=True):
        assert f"#{table.find('td')['id']} {{\n  color: red" in pages[0]


def test_an_output_that_loads_from_elsewhere_is_refused(tmp_path):
    remote = v4.new_output(
        "display_data", data={"text/html": "<img src='https://example.org/x.png'>"}
    )
    executed = executed_notebook(tmp_path / "03.ipynb", [remote])
    with pytest.raises(StudyError, match=r"https://example\.org/x\.png"):
        render_notebook(executed, tmp_path / "a.html", title="t", synthetic=False)
    assert not (tmp_path / "a.html").exists()


def test_an_unreadable_notebook_is_named(tmp_path):
    (tmp_path / "cut.ipynb").write_text('{"cells": [')
    with pytest.raises(StudyError, match=r"cut\.ipynb: not a readable notebook"):
        render_notebook(
            tmp_path / "cut.ipynb", tmp_path / "a.html", title="t", synthetic=False
        )


@pytest.mark.parametrize(
    ("html", "found"),
    [
        (
            "<script src='https://cdn.org/require.js'></script>",
            ["https://cdn.org/require.js"],
        ),
        ("<link rel=stylesheet href=//cdn.org/a.css>", ["//cdn.org/a.css"]),
        ("<img src='figures/a.png'>", ["figures/a.png"]),
        ("<style>@import 'https://a.org/f.css'; p {}</style>", ["https://a.org/f.css"]),
        (
            "<style>@font-face { src: url(https://a.org/f.woff) }</style>",
            ["https://a.org/f.woff"],
        ),
        ("<p style=\"background: url('http://a.org/b.png')\">", ["http://a.org/b.png"]),
        ("<script>import('https://cdn.org/m.js')</script>", ["https://cdn.org/m.js"]),
        ("<a href='https://arxiv.org'>paper</a> <a href='../tables/a.csv'>csv</a>", []),
        (
            "<img src='data:image/png;base64,aa'><style>p { background: url(data:x) }</style>",
            [],
        ),
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


def robust_table():
    """Clean and attacked AUROC of 100 seeds and of all."""
    rows = [
        {"dataset": "builtin", "arm": "rocl", "seed": seed, "protocol": "slf", "attack": attack,
         "epsilon_mv": epsilon, "auroc_shared": value, "auroc_label": value - 0.1, "ci_low": value - 0.05,
         "ci_high": value + 0.05, "n_records": 40, "n_patients": 20, "n_unidentified": 0, "masking_ok": True,
         "severity": np.nan}
        for seed in [*map(str, range(100)), "all"]
        for attack, epsilon, value in (("none", 0.0, 0.9), ("ensemble", 0.02, 0.5))
    ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.fixture
def paths(tmp_path):
    """A study folder with tables, figures and one page."""
    paths = Paths("made", tmp_path)
    paths.tables.mkdir(parents=True)
    paths.report.mkdir()
    (paths.report / "04_figures.html").write_text("page")
    row = {"dataset": "builtin", "protocol": "slf", "attack": "ensemble", "epsilon_mv": 0.02,
           "standard": "rocl", "family": "primary", "p": 0.01, "masking_ok": True, "headline": True,
           "clean_delta": 0.001, "beyond_seeds": True, "seeds": 3, "mde": 0.04}  # fmt: skip
    rows = [
        {
            **row,
            "adaptive": "rocl-ip",
            "delta": 0.031,
            "ci_low": 0.01,
            "ci_high": 0.05,
            "p_holm": 0.02,
            "joint_low": 0.005,
            "joint_high": 0.06,
        },
        {
            **row,
            "adaptive": "rocl-hn",
            "delta": -0.004,
            "ci_low": -0.02,
            "ci_high": 0.01,
            "p_holm": 0.6,
            "joint_low": -0.03,
            "joint_high": 0.02,
        },
    ]
    pd.DataFrame(rows).to_csv(paths.tables / "contrasts.csv", index=False)
    robust_table().to_csv(paths.tables / "robust_auroc.csv", index=False)
    claims = {
        "number": [1, 2],
        "claim": ["Inferior positives help", "Hard negatives do"],
        "effect": [0.031, np.nan],
        "verdict": ["supported", "not tested"],
        "ci_low": [0.01, np.nan],
        "ci_high": [0.05, np.nan],
        "measure": ["robust", ""],
        "evidence": ["rocl-ip − rocl, robust, builtin", ""],
        "masking_ok": [True, np.nan],
    }
    pd.DataFrame(claims).to_csv(paths.tables / "claims.csv", index=False)
    for name in ("contrasts", "class_counts_builtin"):
        values = pd.DataFrame({"x": [1]})
        save_figure(
            Figure((2, 1)),
            paths.figures,
            name,
            values,
            alt=f"{name} <by arm>",
            synthetic=True,
        )
    return paths


@pytest.fixture
def index(paths):
    write_index(a_study(), paths, ["04_figures.html", "missing.html"], synthetic=True)
    return page(paths.report / "index.html")


def rows_of(table):
    return [
        [cell.get_text(" ") for cell in row.find_all("td")]
        for row in table.tbody.find_all("tr")
    ]


def test_the_first_section_answers_the_question(index):
    answer = index.main.find("section")
    assert answer["class"] == ["answer"]
    lead = answer.find("p", class_="lead").get_text()
    assert lead.startswith(
        "▲ In part. Of 2 comparisons on simulated ECGs, adaptive weighting makes encoders more"
    )
    first, second = rows_of(answer.find("table", class_="forest"))
    assert first[0].startswith("rocl-ip − rocl adversaries move to clean views")
    words = [" ".join(row[1].split()) for row in (first, second)]
    assert words == [
        "+0.031 [+0.010, +0.050] ▲ more robust p = 0.020, clean +0.001",
        "−0.004 [−0.020, +0.010] ○ undecided p = 0.60, clean +0.001",
    ]
    assert (
        "Holm's correction for the 2 planned comparisons shown here"
        in answer.get_text()
    )
    assert "at most ε = 0.02 mV" in answer.get_text()


def test_claims_stand_in_short_form_and_untested_ones_apart(index):
    (claim,) = rows_of(index.find("table", class_="claims"))
    assert claim == [
        "1. Inferior positives help", "✓ supported", "+0.031 [+0.010, +0.050] robust AUROC,  rocl-ip − rocl, robust, builtin"
    ]  # fmt: skip
    assert index.find("details", class_="kept").li.get_text() == "2. Hard negatives do"


def test_caveats_stand_in_the_first_section(index):
    caveats = index.find("section", class_="answer").find("dl", class_="caveats")
    titles = [title.get_text() for title in caveats.find_all("dt")]
    assert titles == ["Simulated ECGs", "Size", "Data sets", "Not measured"]
    assert "100 seeds and 20 test patients" in caveats.get_text()
    assert index.find("p", class_="banner").get_text() == BANNER


def test_the_forest_is_drawn_to_scale(index):
    percent = [
        [
            float(part[key].rstrip("%"))
            for part, key in ((line, "x1"), (line, "x2"), (svg.svg, "x"))
        ]
        for svg in index.find("table", class_="forest").tbody.find_all(
            "svg", width="100%"
        )
        for line in [svg.find("line", class_="range")]
    ]
    zero = float(index.find("line", class_="zero")["x1"].rstrip("%"))
    (low, high, at), (low2, _, at2) = percent
    unit = (high - low) / 0.04
    assert at == pytest.approx(zero + 0.031 * unit, abs=0.05)
    assert (low2, at2) == pytest.approx(
        (zero - 0.02 * unit, zero - 0.004 * unit), abs=0.05
    )


def test_a_forest_without_intervals_shows_the_estimates():
    row = {"dataset": "d", "protocol": "slf", "adaptive": "mine", "standard": "rocl", "delta": 0.2,
           "ci_low": np.nan, "ci_high": np.nan, "shown_p": np.nan, "result": "undecided", "dagger": " †",
           "family": "exploratory"}  # fmt: skip
    drawn = forest([row])
    (line,), (panel,) = drawn["lines"], drawn["panels"]
    (only,) = line["cells"]
    assert (only["low"], only["effect"], line["idea"], only["p"]) == (
        None,
        "+0.200 †",
        "",
        "",
    )
    assert panel["zero"] < only["at"] < 100
    assert [text for _, text in panel["ticks"]] == ["0", "+0.1", "+0.2"]
    assert drawn["dagger"]
    assert not drawn["planned"]


def judged(adaptive, dataset, low, high):
    return {"dataset": dataset, "protocol": "slf", "adaptive": adaptive, "standard": "rocl", "dagger": "",
            "delta": (low + high) / 2, "ci_low": low, "ci_high": high, "shown_p": 0.5, "result": "undecided",
            "family": "primary"}  # fmt: skip


def test_every_data_set_has_an_axis_of_its_own_which_its_comparisons_share():
    rows = [
        judged("rocl-ip", "mitdb", -0.4, 0.4),
        judged("rocl-hn", "mitdb", -0.1, 0.1),
    ]
    rows += [judged("rocl-ip", "ptbxl", -0.02, 0.01)]
    drawn = forest(rows)
    assert [panel["name"] for panel in drawn["panels"]] == ["MIT-BIH", "PTB-XL"]
    (wide, tight), (narrow, absent) = (line["cells"] for line in drawn["lines"])
    assert absent is None
    assert wide["high"] - wide["low"] == pytest.approx(
        4 * (narrow["high"] - narrow["low"]), abs=0.05
    )
    assert wide["high"] - wide["low"] == pytest.approx(
        tight["high"] - tight["low"], abs=0.05
    )
    assert drawn["planned"] == 3
    scale = drawn["panels"][1]["ticks"]
    assert [text for _, text in scale] == ["−0.02", "−0.01", "0", "+0.01"]
    assert scale[0][0] == tight["low"]
    assert scale[3][0] == tight["high"]


@given(
    low=st.floats(-1, 0, allow_subnormal=False),
    width=st.floats(1e-3, 1),
    middle=st.floats(0, 1),
)
def test_axes_have_few_round_ticks_that_lie_on_them(low, width, middle):
    ends = {"ci_low": low, "ci_high": low + width, "delta": low + middle * width}
    (panel,) = forest([judged("rocl-ip", "mitdb", low, low + width) | ends])["panels"]
    places = [at for at, _ in panel["ticks"]]
    assert 3 <= len(places) <= 8
    assert 1 <= sum(bool(text) for _, text in panel["ticks"]) <= 4
    assert all(0 <= at <= 100 for at in places)
    np.testing.assert_allclose(np.diff(places), np.diff(places)[0], atol=0.05)


def test_every_arm_has_its_clean_and_robust_auroc(index):
    (section,) = [
        s for s in index.find_all("section") if s.h2 and s.h2.get_text() == "Every arm"
    ]
    (cells,) = rows_of(section.table)
    assert cells[:4] == [
        "rocl",
        "0.900 [0.850, 0.950]",
        "0.500 [0.450, 0.550]",
        "0.400",
    ]
    assert cells[4:] == [
        "a label-free adversarial view is a third positive",
        "Kim et al. 2020 (RoCL); authors' code read",
    ]


def test_the_report_needs_nothing_from_elsewhere_and_has_no_dead_link(index, paths):
    pages = [paths.report / name for name in ("index.html", "methods.html")]
    for file in pages:
        assert check_self_contained(file.read_text(encoding="utf-8")) == []
    links = {a["href"] for file in pages for a in page(file).find_all("a")}
    assert {
        "04_figures.html",
        "../tables/contrasts.csv",
        "../figures/contrasts.svg",
    } <= links
    for link in links:
        file, _, part = link.partition("#")
        assert (
            link.startswith("https://") or (paths.report / file).resolve().exists()
        ), link
        assert (
            not part or file not in ("", "methods.html") or page(pages[1]).find(id=part)
        ), link


def test_figures_have_a_caption_and_their_description(index):
    images = index.find_all("img")
    assert [image["alt"] for image in images] == [
        "contrasts <by arm>",
        "class_counts_builtin <by arm>",
    ]
    captions = [caption.get_text() for caption in index.find_all("figcaption")]
    assert captions[0].startswith("All comparisons of two arms")
    assert captions[1] == "Records of each class: builtin (SVG · PNG · CSV)"


def test_long_tables_are_cut_after_the_rows_of_all_seeds(index):
    (table,) = [
        item
        for item in index.find("ul", class_="tables").find_all("li")
        if "202 rows" in item.get_text()
    ]
    rows = table.tbody.find_all("tr")
    assert len(rows) == 100
    assert [
        rows[0].find_all("td")[2].get_text(),
        rows[2].find_all("td")[2].get_text(),
    ] == ["all", "0"]


def test_few_seeds_and_failed_checks_limit_the_answer(paths):
    table = pd.read_csv(paths.tables / "contrasts.csv")
    table["masking_ok"], table["beyond_seeds"], table["seeds"] = [False, True], False, 2
    table.to_csv(paths.tables / "contrasts.csv", index=False)
    write_index(a_study(seeds=(0, 1)), paths, [], synthetic=False)
    answer = (
        page(paths.report / "index.html").find("section", class_="answer").get_text()
    )
    assert "○ No claim. 2 seeds, fewer than 3, allow no claim" in answer
    assert "+0.031 [+0.010, +0.050] †" in answer
    assert "† The model may hide its gradients" in answer


def test_a_study_without_tables_says_that_it_tests_nothing(tmp_path):
    write_index(a_study(), Paths("made", tmp_path), [], synthetic=False)
    answer = page(tmp_path / "made/report/index.html").find("section", class_="answer")
    assert "Not tested. This study compares no adaptive weighting" in answer.get_text()
    assert answer.find("table") is None


def test_methods_are_one_page_whose_links_lead_somewhere(tmp_path):
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "one.md").write_text(
        "# One\n\n$x^2$, see [two](two.md), [`code`](../code.py), [web](https://a.org/b.md)."
    )
    (docs / "two.md").write_text(
        "# Two\n\n[back](one.md#part)\n\n| a | b |\n|---|---|\n| 1 | 2 |\n"
    )
    write_methods(tmp_path / "report/methods.html", ("one", "two"), docs)
    shown = page(tmp_path / "report/methods.html")
    assert [a["href"] for a in shown.main.find_all("a")] == [
        "#two",
        "https://a.org/b.md",
        "#part",
    ]
    assert "see two, code, web." in shown.main.p.get_text()
    assert [section["id"] for section in shown.main.find_all("section")] == [
        "one",
        "two",
    ]
    assert shown.find("msup") is not None
    assert shown.table.parent["class"] == ["scroll"]


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("chromium") is None, reason="chromium is not installed"
)
def test_a_browser_shows_a_page_offline(tmp_path):
    executed = executed_notebook(tmp_path / "03.ipynb")
    render_notebook(
        executed, tmp_path / "page.html", title="Evaluation", synthetic=True
    )
    flags = "--headless --no-sandbox --disable-gpu --disable-background-networking --dump-dom"
    rules = "--host-resolver-rules=MAP * ~NOTFOUND"
    call = [
        "chromium",
        *flags.split(),
        rules,
        f"--user-data-dir={tmp_path / 'profile'}",
        (tmp_path / "page.html").as_uri(),
    ]
    shown = subprocess.run(
        call, capture_output=True, text=True, timeout=120, check=True
    ).stdout
    assert "Robust AUROC" in shown
    assert "<math" in shown
