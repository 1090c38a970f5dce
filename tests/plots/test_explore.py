"""The controls of the exploration notebook start at what is asked for, and redraw."""

import pytest
from explored import evaluated_run

from ecgstudy.plots import explore
from ecgstudy.study import Paths


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    root = tmp_path_factory.mktemp("outputs")
    return root, evaluated_run(root)


def test_controls_start_at_the_parameters_and_compute_at_the_button(done, monkeypatch):
    root, made = done
    shown, record = [], made.test.table["record"].iloc[1]
    monkeypatch.setattr(explore, "display", lambda *parts: shown.extend(parts))
    paths = Paths(made.run.study.study, root)
    explore.show_controls(made.run, made.records, paths, record, "fgsm", 0.03)
    (controls,) = shown
    chosen = {box.description: box.value for box in controls.children[:4]}
    assert chosen == {
        "arm": "rocl-ip-hn",
        "record": record,
        "attack": "fgsm",
        "epsilon_mv": 0.03,
    }
    assert set(controls.children[0].options) == {"rocl", "rocl-ip-hn"}
    assert 0.01 in controls.children[3].options
    controls.children[3].value = 0.01
    assert len(shown) == 1
    controls.manual_button.click()
    assert len(shown) == 1 + 6  # ECG, scores, energy, pull, push and their table
    assert "max |δ| = 10 µV" in "".join(
        t.get_text() for t in shown[1].findobj() if hasattr(t, "get_text")
    )
