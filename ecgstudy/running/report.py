"""The pages of a study's report, from its executed notebooks."""

from pathlib import Path

from ecgstudy.errors import StudyError
from ecgstudy.running.cache import Step, report_pages
from ecgstudy.study import Study


def write_report(study: Study, *, every_run: bool = False, again: bool = False) -> Path:
    """Write the pages that are missing or older than their notebook; returns the first.

    Parameters
    ----------
    study
        The study, read from a params file.
    every_run
        A page for each run, not only for the one that the report shows.
    again
        Write all pages whose notebook is there.

    Raises
    ------
    StudyError
        When a page can only be written after its notebook was executed.
    """
    pages = report_pages(study, every_run=every_run)
    for page, step in pages.items():
        if step.notebook.exists():
            if again or is_stale(page, step):
                write_page(study, step, page)
        elif not page.exists():
            raise StudyError(f"{page.name} needs {step}; run `ecgstudy study` first")
    methods = study.paths.report / "methods.html"
    if again or not methods.exists():
        from ecgstudy.running.html import render_methods

        render_methods(methods, study.title, linked(study))
    return study.paths.report / "index.html"


def linked(study: Study) -> list[str]:
    """Names of the pages that each page links to: the results first."""
    names = sorted(page.name for page in report_pages(study))
    return ["index.html", *(n for n in names if n != "index.html"), "methods.html"]


def write_page(study: Study, step: Step, page: Path) -> None:
    """Write the executed notebook of a step as a page.

    Parameters
    ----------
    study, step
        The study, and one of its steps.
    page
        Where the page goes.
    """
    from ecgstudy.datasets.prepare import is_synthetic
    from ecgstudy.running.html import render_notebook

    synthetic = is_synthetic(study)
    render_notebook(step.notebook, page, study.title, linked(study), synthetic)


def is_stale(page: Path, step: Step) -> bool:
    """Whether the step's notebook was executed after its page was written."""
    if not page.exists():
        return True
    notebook = step.notebook
    return notebook.exists() and notebook.stat().st_mtime > page.stat().st_mtime
