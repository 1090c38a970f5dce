"""What the exploration notebook draws of one ECG, and redraws."""

import pytest
from explored import evaluated_run

from ecgstudy.evaluation import explore
from ecgstudy.plots import explore as shown_of


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    return evaluated_run(tmp_path_factory.mktemp("outputs"))


def test_every_figure_is_described_by_its_values(done):
    record = done.test.table["record"].iloc[0]
    place = done.run, done.records, done.folder, record
    ecg = explore.attack_record(*place, "apgd-margin", 0.02)
    weighed = explore.weigh_record(*place, size=24)
    drawn = [
        shown_of.draw(ecg, done.records, 0.02),
        shown_of.draw_energy(ecg, done.records),
        shown_of.draw_weights(weighed, done.records),
    ]
    shown = [figure._repr_mimebundle_()[1]["image/png"]["alt"] for figure in drawn]
    name, scores = next(ecg.scores.iterrows())
    assert "ε = 20 µV: 10.0 s, 12 leads" in shown[0]
    said = f"{scores['before']:+.2f} to {scores['after']:+.2f}".replace("-", "−")
    assert name + " (true)" * scores["true"] + f" {said}" in shown[0]
    assert "apgd-margin most in" in shown[1]
    assert (
        "inferior-positives: pull of its clean view 0.70, attacked view 1.60;"
        " push 1 to 1." in shown[2]
    )


def test_controls_redraw_what_a_choice_changes(done, monkeypatch):
    drawn = []
    monkeypatch.setattr(shown_of, "display", drawn.append)
    shown_of.controls(done.run, done.records, done.folder, ["apgd-margin", "fgsm"])
    first = len(drawn)
    panel = drawn[-1].children[0].children
    assert [box.description for box in panel] == ["record", "attack", "ε (mV)"]
    panel[1].value = "fgsm"
    assert len(drawn) == first + 3  # ECG, scores, energy
    panel[0].value = panel[0].options[1]
    assert len(drawn) == first + 3 + 5  # and weights with their table
