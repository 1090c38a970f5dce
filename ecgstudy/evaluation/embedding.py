"""The geometry of a model's embeddings, clean and under attack."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import normalize

from ecgstudy.devices import pick_device
from ecgstudy.evaluation.attack_run import AttackRun
from ecgstudy.evaluation.sample import apply_in_batches, select_attacked
from ecgstudy.models.checkpoints import load_encoder
from ecgstudy.records import EcgRecords

BLOCK = 1024


def measure_geometry(attack_run: AttackRun, delta: Tensor) -> dict[str, float]:
    """`compare_embeddings` of an attacked model's features without and with δ in mV."""
    features = []
    for signals in (attack_run.signals, attack_run.signals + delta):
        parts = [attack_run.victim.features(part) for part in signals.split(512)]
        features.append(torch.cat(parts))
    patients = attack_run.records.table["patient"].to_numpy()
    return compare_embeddings(*features, attack_run.labels, patients)


def compare_embeddings(
    clean: Tensor, attacked: Tensor, labels: Tensor, patients: np.ndarray
) -> dict[str, float]:
    """Alignment, uniformity, class separation, identity confusion on the unit sphere.

    Parameters
    ----------
    clean, attacked
        Features (records, features) of the same records, not necessarily normalised.
    labels
        Multi-hot (records, classes).
    patients
        Who each record is from, (records,).

    Returns
    -------
    dict
        `alignment`
            Mean squared distance of a record's attacked and clean feature; 0 to 4,
            small is stable (Wang & Isola 2020, eq. 4, α = 2, attack as other view).
        `uniformity`, `uniformity_attacked`
            log mean exp(−2 d²) over pairs of records; −4 is spread over the sphere, 0
            collapsed (Wang & Isola 2020, eq. 5, t = 2).
        `class_separation`, `class_separation_attacked`
            `silhouette`; −1 to 1.
        `identity_confusion`
            Share of attacked records whose nearest clean feature is another patient's;
            the record's own clean feature is a candidate, so without attack it is 0.

        What a sample does not define (one record, no class of two) is left out.
    """
    clean, attacked = (normalize(x.double(), dim=1) for x in (clean, attacked))
    codes = np.unique(patients, return_inverse=True)[1]
    codes = torch.as_tensor(codes, device=clean.device)
    measures = {
        "alignment": float((attacked - clean).square().sum(1).mean()),
        "uniformity": uniformity(clean),
        "uniformity_attacked": uniformity(attacked),
        "class_separation": silhouette(clean, labels),
        "class_separation_attacked": silhouette(attacked, labels),
        "identity_confusion": identity_confusion(clean, attacked, codes),
    }
    return {name: value for name, value in measures.items() if np.isfinite(value)}


def uniformity(features: Tensor) -> float:
    """log mean exp(−2 d²) over all pairs of different rows, unit vectors in float64."""
    n = len(features)
    if n < 2:
        return np.nan
    total = 0
    for rows in features.split(BLOCK):  # −2 d² = 4 (cos − 1)
        total = total + (4 * (rows @ features.T - 1)).exp().sum()
    return float(torch.log((total - n) / (n * (n - 1))))


def silhouette(features: Tensor, labels: Tensor) -> float:
    """How much closer a record is to its class than to all others; mean over classes.

    The silhouette (b − a) / max(a, b) of Rousseeuw (1987), averaged over the records
    of a class: a is the mean distance to others of the class, b that to all records
    without it. So it is defined for multi-label data, too.
    """
    from sklearn.metrics import silhouette_samples

    x, hot = features.cpu().numpy(), labels.cpu().numpy() > 0
    hot = hot[:, (hot.sum(0) > 1) & ~hot.all(0)]
    each = [silhouette_samples(x, column)[column].mean() for column in hot.T]
    return float(np.mean(each)) if each else np.nan


def identity_confusion(clean: Tensor, attacked: Tensor, patients: Tensor) -> float:
    """Share of records of which another patient's clean feature is the nearest.

    Parameters
    ----------
    clean, attacked
        Unit vectors (records, features).
    patients
        A number for each patient, (records,).
    """
    confused = []
    for rows, own in zip(attacked.split(BLOCK), patients.split(BLOCK), strict=True):
        similarity, same = rows @ clean.T, own[:, None] == patients
        nearest_own = similarity.masked_fill(~same, -torch.inf).amax(1)
        nearest_other = similarity.masked_fill(same, -torch.inf).amax(1)
        confused.append(nearest_other > nearest_own)
    return float(torch.cat(confused).double().mean())


def embedding_plane(
    records: EcgRecords, folder: Path, most: int = 1500, device: str = "cpu"
) -> pd.DataFrame:
    """Features of test records on their first two principal components.

    Parameters
    ----------
    records
        All records of a data set.
    folder
        Of a pretrained run.
    most
        At most so many test records.
    device
        Where to encode them, as for `pick_device`.

    Returns
    -------
    DataFrame
        `x`, `y`, `class` (the first of several), `patient`.
    """
    from sklearn.decomposition import PCA

    encoder, _, _ = load_encoder(folder, device)
    test = select_attacked(records, "test", most)
    features = apply_in_batches(encoder, test.signals, pick_device(device))
    features = features.cpu().numpy()
    standard = (features - features.mean(0)) / (features.std(0) + 1e-6)
    plane = PCA(2, random_state=0).fit_transform(standard)
    labels = test.multi_hot()
    first = np.where(labels.any(1), labels.argmax(1), len(test.classes))
    columns = {"x": plane[:, 0], "y": plane[:, 1]}
    names = np.array([*test.classes, "none"])
    patients = test.table["patient"]
    return pd.DataFrame({**columns, "class": names[first], "patient": patients})
