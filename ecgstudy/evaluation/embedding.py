"""The shape of a model's embeddings, clean and under attack: what goes with robustness?"""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

BLOCK = 1024


def geometry(
    clean: Tensor, attacked: Tensor, labels: Tensor, patients: np.ndarray
) -> dict[str, float]:
    """Alignment, uniformity, class separation and identity confusion of features on the unit sphere.

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
            Mean squared distance of a record's attacked and clean feature; 0 to 4, small is stable
            (Wang & Isola 2020, eq. 4, α = 2, with the attack as the other view).
        `uniformity`, `uniformity_attacked`
            log mean exp(−2 d²) over pairs of records; −4 is spread over the sphere, 0 collapsed
            (Wang & Isola 2020, eq. 5, t = 2).
        `class_separation`, `class_separation_attacked`
            `silhouette`; −1 to 1.
        `identity_confusion`
            Share of attacked records whose nearest clean feature is another patient's; the record's own
            clean feature is among the candidates, so without attack it is 0.

        What a sample does not define (one record, no class with two records) is left out.
    """
    clean, attacked = (normalize(x.double(), dim=1) for x in (clean, attacked))
    codes = torch.as_tensor(
        np.unique(patients, return_inverse=True)[1], device=clean.device
    )
    found = {
        "alignment": (attacked - clean).square().sum(1).mean(),
        "uniformity": uniformity(clean),
        "uniformity_attacked": uniformity(attacked),
        "class_separation": silhouette(clean, labels),
        "class_separation_attacked": silhouette(attacked, labels),
        "identity_confusion": identity_confusion(clean, attacked, codes),
    }
    return {
        name: float(value) for name, value in found.items() if np.isfinite(float(value))
    }


def uniformity(features: Tensor) -> float:
    """log mean exp(−2 d²) over all pairs of different rows of `features`, unit vectors in float64."""
    n = len(features)
    total = sum(
        ((4 * (rows @ features.T - 1)).exp()).sum() for rows in features.split(BLOCK)
    )  # d² = 2 − 2 cos
    return float(torch.log((total - n) / (n * (n - 1)))) if n > 1 else np.nan


def silhouette(features: Tensor, labels: Tensor) -> float:
    """How much closer a record is to its class than to all other records; mean over class, then classes.

    The silhouette (b − a) / max(a, b) of Rousseeuw (1987) of each record that has the class: a its mean
    distance to others of the class, b that to all records without it. Also defined for multi-label data.
    """
    from sklearn.metrics import silhouette_samples

    x, hot = features.cpu().numpy(), labels.cpu().numpy() > 0
    hot = hot[:, (hot.sum(0) > 1) & ~hot.all(0)]
    each = [silhouette_samples(x, column)[column].mean() for column in hot.T]
    return float(np.mean(each)) if each else np.nan


def identity_confusion(clean: Tensor, attacked: Tensor, patients: Tensor) -> float:
    """Share of `attacked` features that some other patient's `clean` feature is nearer to than any own."""
    confused = []
    for rows, own in zip(attacked.split(BLOCK), patients.split(BLOCK), strict=True):
        similarity, same = rows @ clean.T, own[:, None] == patients
        nearest = [
            similarity.masked_fill(mask, -torch.inf).amax(1) for mask in (~same, same)
        ]
        confused.append(nearest[1] > nearest[0])
    return float(torch.cat(confused).double().mean())
