"""What docs/reproducibility.md says of committed results: tables to the byte, clean scores to rounding."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import logsumexp

from ecgstudy.analysis.tables import write_tables
from ecgstudy.datasets import prepare as datasets
from ecgstudy.models.checkpoints import load_classifier
from ecgstudy.study import ROOT, Paths, load_study

pytestmark = pytest.mark.slow
HOME = ROOT / "outputs/mitdb"
DATA = Path(os.environ.get("ECGSTUDY_DATA", "")) / "mitdb"


def test_tables_from_the_committed_scores_are_the_committed_ones_to_the_byte(tmp_path):
    study, paths = load_study(ROOT / "params/mitdb.yaml"), Paths("mitdb", tmp_path)
    paths.home.mkdir()
    (paths.home / "runs").symlink_to(HOME / "runs")
    write_tables(study, paths)
    committed = {
        file.name: file.read_bytes() for file in (HOME / "tables").glob("*.csv")
    }
    assert {file.name for file in paths.tables.glob("*.csv")} == committed.keys()
    assert [
        name
        for name, text in committed.items()
        if (paths.tables / name).read_bytes() != text
    ] == []


@pytest.mark.skipif(
    not DATA.is_absolute() or not DATA.is_dir(), reason="no mitdb/ in ECGSTUDY_DATA"
)
@pytest.mark.parametrize("arm", ["rocl-hn", "supervised"])
def test_committed_weights_give_the_committed_clean_scores_to_rounding(arm, tmp_path):
    folder = HOME / "runs/mitdb" / arm / "seed0/slf"
    stored = (
        pd.read_parquet(folder / "scores.parquet")
        .query("attack == 'none'")
        .set_index("record")
    )
    options = load_study(ROOT / "params/mitdb.yaml").datasets["mitdb"]
    records = datasets.prepare("mitdb", options, tmp_path)
    rows = pd.Index(records.table["record"]).get_indexer(stored.index)
    assert (stored["split"] == "test").sum() == 443
    assert (rows >= 0).all()
    model, form = load_classifier(folder)
    logits = model(torch.tensor(records.signals[rows])).double().numpy()
    others = np.stack(
        [np.delete(logits, c, axis=1) for c in range(logits.shape[1])], axis=1
    )
    margins = logits - logsumexp(others, axis=2)
    columns = [f"score_{name}" for name in form["classes"]]
    np.testing.assert_allclose(margins, stored[columns], rtol=0, atol=1e-3)
    labels = np.array(form["classes"])[
        stored[[f"y_{name}" for name in form["classes"]]].to_numpy().argmax(1)
    ]
    assert [records.classes[label] for label in records.labels[rows]] == list(labels)
