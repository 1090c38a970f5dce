"""Arms with ``training.loss: original`` against the published formulas."""

import pytest
import torch
from hand_filled import VIEWS, Case, assert_same, package_loss
from loss_loops import (
    a_infonce_hn,
    a_infonce_rocl,
    advcl,
    anchor,
    ascl,
    asymmetric,
    contract,
    dclw,
    debiased,
    mean,
    nt_xent,
    supcon,
)

from ecgstudy.pretraining import step
from ecgstudy.pretraining.step import arm_loss
from ecgstudy.pretraining.suffixes import arm_names, get_arm

HN = {"hn": 1.0, "tau_plus": 0.1}
TRAINED = [name for name in arm_names() if get_arm(name).losses]


def rocl_side(c):
    z, _ = c.of("2 1*")
    fixed, n = z.detach(), len(z)
    terms = []
    for i in range(n):
        e = [torch.exp(z[i] @ fixed[k] / c.tau) for k in range(n)]
        terms.append(-torch.log(e[(i + n // 2) % n] / (sum(e) - e[i])))
    return mean(terms) / 512


def rocl_original(alpha=None):
    clean = 1.0 if alpha is None else 0.5

    def oracle(c):
        z, _ = c.of("1 2 1*")
        both = a_infonce_rocl(z, len(c.patients), c.tau, alpha, clean_weight=clean)
        return (both / 2 if alpha is None else both) + rocl_side(c)

    return oracle


def rocl_hn_original(c):
    return a_infonce_hn(*c.of("1 2 1*"), c.tau, 0.1, 1.0, detach=True) + rocl_side(c)


# Inferior positives on AdvCL: the source stops the columns of mixed pairs only and
# takes the gradient of clean-clean pairs through both sides, term by term. We stop them
# all: same value, and the gradient of clean-clean pairs through their anchor alone.


def advcl_original(c, alpha=None):
    z, rows = c.of("1 2 h 0*")
    return advcl(z, rows, c.tau, alpha and asymmetric(rows, alpha)) + 0.028 * c.pseudo()


def advcl_hn_original(c, alpha=None):
    z, rows = c.of("1 2 h 0*")
    pair = alpha and asymmetric(rows, alpha)
    return (
        a_infonce_hn(z, rows, c.tau, 0.1, 1.0, detach=False, pair=pair)
        + 0.028 * c.pseudo()
    )


def two_streams(c, first, second, loss):
    return (loss(*c.of(first)) + loss(*c.of(second))) / 2


def labelled(views):
    """SupCon over the rows of `views`, without gradient of the columns."""
    return lambda c: anchor(*c.of(views), c.tau, 0.0)


ORIGINALS = {
    "supcon": lambda c: supcon(c.of("1 2")[0], c.y.argmax(1).repeat(2), c.tau),
    "dclw": lambda c: dclw(*c.of("1 2"), 0.1, 0.5),
    "rocl": rocl_original(),
    "rocl-long": rocl_original(),
    "rocl-ip": rocl_original(0.2),
    "rocl-debiased": lambda c: (
        contract(*c.of("1 2 1*"), c.tau, tau_plus=0.1, denominator="all", detach=True)
        + rocl_side(c)
    ),
    "rocl-hn": rocl_hn_original,
    "rocl-ip-hn": lambda c: (
        c.pairs("1 2 1*", ip=0.2, detach=True, denominator="mean", **HN) + rocl_side(c)
    ),
    "rocl-clef": lambda c: (
        c.pairs("1 2 1*", clef=True, detach=True, denominator="all") + rocl_side(c)
    ),
    "rocl-clef-ip-hn": lambda c: (
        c.pairs("1 2 1*", clef=True, ip=0.2, detach=True, denominator="mean", **HN)
        + rocl_side(c)
    ),
    "acl": lambda c: two_streams(
        c, "1 2", "1* 2*", lambda z, rows: nt_xent(z, rows, c.tau)
    ),
    "dynacl": lambda c: two_streams(
        c, "1 2", "1* 2*", lambda z, rows: nt_xent(z, rows, c.tau)
    ),
    "acl-hn": lambda c: two_streams(
        c,
        "1 2",
        "1* 2*",
        lambda z, rows: a_infonce_hn(z, rows, c.tau, 0.1, 1.0, detach=False),
    ),
    "advcl": advcl_original,
    "advcl-ip": lambda c: advcl_original(c, 0.2),
    "advcl-hn": advcl_hn_original,
    "advcl-ip-hn": lambda c: advcl_hn_original(c, 0.2),
    "clae": lambda c: two_streams(
        c, "1 2", "1 1*", lambda z, rows: nt_xent(z, rows, c.tau)
    ),
    "clae-supcon": lambda c: two_streams(
        c, "1 2", "1 1*", lambda z, rows: supcon(z, c.y.argmax(1).repeat(2), c.tau)
    ),
    "clae-hcl": lambda c: two_streams(
        c, "1 2", "1 1*", lambda z, rows: debiased(z, rows, c.tau, 0.1, 1.0)[0]
    ),
    "claf-ip-hn": lambda c: c.claf(ip=0.2, denominator="mean", **HN),
    "adv-supcon": labelled("1 2 1*"),
    "adv-supcon-labels": labelled("1 2 1*"),
    "adv-supcon-noise": labelled("1 2 1*"),
    "anchor": lambda c: anchor(*c.of("1 1*"), c.tau, 1.0) + c.ce("1*"),
    "ascl": lambda c: ascl(*c.of("1 1*"), 0.2) + c.ce("1*") + 2 * c.kl("1", "1*"),
}
"""Arm → its loss as published. Under IP mixed pairs keep the sum of their weights."""


def test_every_arm_whose_source_differs_has_an_oracle_of_the_original():
    differing = {name for name in TRAINED if get_arm(name).original}
    assert differing == set(ORIGINALS)


@pytest.mark.parametrize("name", ORIGINALS)
def test_the_original_form_of_an_arm_equals_the_published_loss(name, monkeypatch):
    case = Case(patients=(0, 1, 2, 3, 4))
    case.fill(name, "original")
    _, gradient = assert_same(case, ORIGINALS[name], monkeypatch)
    assert gradient.abs().max() > 1e-3


# ---- known errors of the sources, not repeated


def test_the_self_term_leaves_the_denominator_whole(monkeypatch):
    """An old pl_bolts subtracts e¹ instead of e^(1/τ)."""
    case = Case(patients=(0, 1, 2), labels=((1, 0, 0),) * 3)
    case.fill("simclr")
    case.z = {v: torch.eye(3, 4, dtype=torch.float64) for v in VIEWS}
    right, theirs = (
        torch.log(torch.tensor(2.0).exp() + 4 + left) - 2 for left in (0, 4.670774)
    )
    assert package_loss(case, monkeypatch).item() == pytest.approx(
        right.item(), rel=1e-6
    )
    assert theirs - right > 0.3


def test_supcon_is_not_scaled_by_a_base_temperature(monkeypatch):
    """The authors' factor is 0.5/0.07; the loss of equal rows is log(2B − 1)."""
    case = Case(patients=(0, 1, 2), labels=((1, 0, 0),) * 3)
    case.fill("supcon", "original")
    case.z = {v: torch.ones(3, 4, dtype=torch.float64) / 2 for v in VIEWS}
    assert package_loss(case, monkeypatch).item() == pytest.approx(
        torch.tensor(5.0).log().item(), rel=1e-6
    )


def test_advcl_keeps_both_directions_of_a_clean_adversarial_pair(monkeypatch):
    """A-InfoNCE's baseline replaces ℓ(c→a) by ℓ(a→c)."""
    case = Case(patients=(0, 1, 2, 3, 4))
    case.fill("advcl", "original")
    ours = package_loss(case, monkeypatch) - 0.028 * case.pseudo()
    z, rows = case.of("1 2 h 0*")
    replaced = advcl(
        z, rows, case.tau, lambda i, p: (float(rows.adversarial[p]) * -1 + 1, False)
    )
    twice = advcl(z, rows, case.tau, lambda i, p: (float(rows.adversarial[i]), False))
    torch.testing.assert_close(ours, advcl(z, rows, case.tau))
    assert (replaced + twice - ours).abs() > 1e-3


def test_hard_negatives_of_advcl_keep_off_the_floor(monkeypatch):
    """With the authors' shifted exponentials nearly all rows sit on the floor."""
    case = Case(patients=tuple(range(8)), labels=((1, 0, 0),) * 8, width=32)
    state = case.fill("advcl-hn", "original")
    monkeypatch.setattr(step, "embed_batch", lambda *given: case.batch())
    ours = arm_loss(state, None, None)[1]["floor_fraction"]
    z, rows = case.of("1 2 h 0*")
    e = torch.exp(z.detach() @ z.detach().T / case.tau)
    same, n = rows.record[:, None] == rows.record[None, :], 28
    importance = e * ~same
    total = (importance * e).sum(1) / (importance.sum(1) / n)
    positive = (e * same).sum(1) - e.diagonal()
    estimate = (total - 0.1 * n * positive / 3) / 0.9
    floor = n * torch.exp(torch.tensor(-1 / case.tau))
    assert ours.item() == pytest.approx((estimate < floor).double().mean().item())
    shifted = (
        (estimate * torch.exp(torch.tensor(-1 / case.tau)) < floor).double().mean()
    )
    assert shifted > 0.3 + ours
