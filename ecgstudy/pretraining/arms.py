"""The study's arms, one row of data each; what the fields mean is said in `Arm`.

`ecgstudy.pretraining.suffixes` adds factors and controls by suffixes of a row's name:
``rocl-ip-hn`` is the row ``rocl`` with two more factors. An arm of your own is a
function that returns an `Arm`, decorated with ``es.arm("its-name")``.
"""

from ecgstudy.pretraining.arm_type import Adversary, Arm, Loss, Schemes
from ecgstudy.registry import ARMS

TWO_VIEWS = (Loss("contrast", "1 2"),)
THREE_VIEWS = (Loss("contrast", "1 2 1*"),)
LABEL_ATTACK = Adversary("1*", "labels")
LABELS: Schemes = (("labels", {}),)
HARD_NEGATIVES: Schemes = (("hard-negatives", {"beta": 1.0}),)
"""β as in HCL and in A-InfoNCE's HN."""
TAU_PLUS = 0.1
"""τ⁺ as in HCL and in A-InfoNCE's HN."""
ROCL_LOSSES = (*THREE_VIEWS, Loss("contrast", "2 1*", 1 / 512, plain=True))
"""The source adds NT-Xent/256 to a loss that sums two positives, which we average."""
CLAE_LOSSES = (Loss("contrast", "1 2", 0.5), Loss("contrast", "1 1*", 0.5))
CLAE_ATTACK = Adversary("1* 2", steps=1, step=1.0, random_start=False, both_sides=True)
CLAE = (
    "Ho & Vasconcelos 2020; authors' code read. "
    "Attack in evaluation mode, as in all arms"
)

ARMS |= {
    # ---- References
    "random": Arm(
        group="reference",
        idea="untrained encoder, linear probe",
        source="control",
    ),
    "supervised": Arm(
        group="reference",
        idea="cross-entropy on clean ECGs",
        source="control",
        losses=(Loss("ce", "1"),),
        own_head=True,
        sets_headline=True,
    ),
    "pgd-at": Arm(
        group="reference",
        idea="adversarial training: cross-entropy on attacked ECGs",
        source="Madry et al. 2018",
        losses=(Loss("ce", "1*"),),
        adversary=LABEL_ATTACK,
        base="supervised",
        own_head=True,
    ),
    "trades": Arm(
        group="reference",
        idea="clean cross-entropy plus KL divergence of predictions under attack",
        source="Zhang et al. 2019, β = 6; authors' code read. "
        "Uniform start and label-wise KL of multi-label ECGs are ours",
        losses=(Loss("ce", "1"), Loss("kl", "1 1*", 6.0)),
        adversary=Adversary("1* 1", "kl"),
        base="supervised",
        own_head=True,
        original_attack={"steps": 10, "step": 0.226},
    ),
    "mart": Arm(
        group="reference",
        idea="adversarial training weighted towards ECGs misclassified when clean",
        source="Wang et al. 2020, β = 6; authors' code read. "
        "The multi-label form is ours",
        losses=(Loss("mart", "1 1*"),),
        adversary=LABEL_ATTACK,
        base="supervised",
        own_head=True,
        original_attack={"steps": 10, "step": 0.226},
    ),
    "features-lr": Arm(
        group="reference",
        idea="logistic regression on engineered features",
        source="control",
        features="lr",
        needs="supervised",
    ),
    "features-tree": Arm(
        group="reference",
        idea="decision tree on engineered features",
        source="control",
        features="tree",
        needs="supervised",
    ),
    "features-forest": Arm(
        group="reference",
        idea="random forest on engineered features",
        source="control",
        features="forest",
        needs="supervised",
    ),
    # ---- Contrastive, clean views
    "simclr": Arm(
        group="standard",
        idea="two augmented views of an ECG are positives, other patients negatives",
        source="Chen et al. 2020",
        losses=TWO_VIEWS,
    ),
    "simclr-long": Arm(
        group="standard",
        idea="simclr with the wall time of rocl",
        source="control; a step takes a third of the time",
        losses=TWO_VIEWS,
        base="simclr",
        epochs=3.0,
    ),
    "supcon": Arm(
        group="with labels",
        idea="supervised contrastive loss: ECGs that share labels are positives",
        source="Khosla et al. 2020; authors' code read. "
        "Overlap of several labels is a reconstruction",
        losses=TWO_VIEWS,
        weighting=LABELS,
        base="simclr",
        original={"denominator": "all"},
    ),
    "dclw": Arm(
        group="adaptive",
        idea="no positive in the denominator; dissimilar positives weigh more",
        source="Yeh et al. 2022; another group's code read",
        losses=TWO_VIEWS,
        weighting=(("hard-positive-logits", {"sigma": 0.5}),),
        loss_options={"denominator": "none"},
        base="simclr",
        original={"temperature_factor": 0.2},
    ),
    "clef": Arm(
        group="adaptive",
        idea="negatives weighted by difference in clinical risk",
        source="CLEF, arXiv 2512.02180; authors' code read. "
        "Mean-1 scaling and SCORE2 from age and sex are ours",
        losses=TWO_VIEWS,
        weighting=(("clinical-risk", {}),),
        base="simclr",
    ),
    "clef-original": Arm(
        group="adaptive",
        idea="clef with its published scale of weights, "
        "and regression of similarity on risk",
        source="CLEF, arXiv 2512.02180; authors' code read. "
        "SCORE2 from age and sex is ours. τ = 0.07 where the study's is 0.5",
        losses=(Loss("contrast", "1 2", 0.5), Loss("risk-similarity", "1 2", 0.5)),
        weighting=(("clinical-risk", {"original": True}),),
        temperature_factor=0.14,
        projector=False,
        base="simclr",
    ),
    # ---- Contrastive, with adversarial views
    "rocl": Arm(
        group="adversarial",
        idea="an adversarial view from a label-free attack is a third positive",
        source="Kim et al. 2020 (RoCL); authors' code read",
        losses=ROCL_LOSSES,
        adversary=Adversary("1* 2"),
        base="simclr",
        original={"denominator": "all"},
        original_attack={"steps": 7, "step": 0.223},
    ),
    "rocl-long": Arm(
        group="adversarial",
        idea="rocl with 2.5 times its epochs",
        source="control",
        losses=ROCL_LOSSES,
        adversary=Adversary("1* 2"),
        base="rocl",
        original={"denominator": "all"},
        original_attack={"steps": 7, "step": 0.223},
        epochs=2.5,
    ),
    "acl": Arm(
        group="adversarial",
        idea="two streams: a pair of clean views and a pair of adversarial views",
        source="Jiang et al. 2020 (ACL, dual stream); authors' code read",
        losses=(Loss("contrast", "1 2", 0.5), Loss("contrast", "1* 2*", 0.5)),
        adversary=Adversary("1* 2*"),
        base="simclr",
        original={"detach_candidates": False},
        original_attack={"steps": 5, "step": 0.25, "both_sides": True},
    ),
    "advcl": Arm(
        group="adversarial",
        idea="two views, a high-pass view and an adversary are positives; "
        "classification of pseudo-labels",
        source="Fan et al. 2021 (AdvCL); authors' code read. High-pass along time, "
        "pseudo-labels by simclr on training folds, one adversary for both are ours",
        losses=(Loss("contrast", "1 2 h 0*"), Loss("pseudo-labels", "0*", 0.028)),
        adversary=Adversary("0* 1 2 h"),
        base="simclr",
        needs="simclr",
        original={"denominator": "all", "detach_candidates": False},
        original_attack={
            "steps": 5,
            "step": 0.25,
            "both_sides": True,
            "train_mode": True,
        },
    ),
    "clae": Arm(
        group="adversarial",
        idea="a one-step adversary of the whole batch is a second positive",
        source=CLAE,
        losses=CLAE_LOSSES,
        adversary=CLAE_ATTACK,
        base="simclr",
        original={"detach_candidates": False},
        original_attack={"train_mode": True},
    ),
    "clae-supcon": Arm(
        group="with labels",
        idea="supcon with the adversary of clae",
        source=CLAE,
        losses=CLAE_LOSSES,
        adversary=CLAE_ATTACK,
        weighting=LABELS,
        base="supcon",
        original={"detach_candidates": False, "denominator": "all"},
        original_attack={"train_mode": True},
    ),
    "clae-hcl": Arm(
        group="adversarial adaptive",
        idea="hcl with the adversary of clae",
        source=CLAE,
        losses=CLAE_LOSSES,
        adversary=CLAE_ATTACK,
        weighting=HARD_NEGATIVES,
        tau_plus=TAU_PLUS,
        base="hcl",
        original={"detach_candidates": False},
        original_attack={"train_mode": True},
    ),
    "swaro": Arm(
        group="adversarial",
        idea="cluster codes agree between views, also under attacks on codes",
        source="Wahed et al. 2022 (SwARo); abstract only, a reconstruction",
        losses=(Loss("codes", "1 2 1* 2*"),),
        adversary=Adversary("1* 2* 1 2", "permuted-codes"),
        base="simclr",
        dual_norm=True,
    ),
    "claf": Arm(
        group="adversarial",
        idea="an adversary of a linear head trained alongside is a third positive",
        source="Rahamim & Naeh 2022; abstract only, a reconstruction. "
        "Labels train the head, not the encoder",
        losses=(*THREE_VIEWS, Loss("head", "1 2")),
        adversary=LABEL_ATTACK,
        base="simclr",
    ),
    "dynacl": Arm(
        group="adversarial",
        idea="acl with fading augmentations, growing weight of the adversarial pair, "
        "and a momentum encoder",
        source="Luo et al. 2023 (DynACL); authors' code read",
        losses=(
            Loss("contrast", "1 2", 1 / 2, last=1 / 6),
            Loss("contrast", "1* 2*", 1 / 2, last=5 / 6),
        ),
        adversary=Adversary("1* 2*"),
        base="acl",
        momentum=0.99,
        fading_views=True,
        original={"detach_candidates": False},
        original_attack={"steps": 5, "step": 0.25, "both_sides": True},
    ),
    "deacl": Arm(
        group="adversarial",
        idea="distils a simclr encoder into one that agrees with it under attack",
        source="Zhang et al. 2022 (DeACL); authors' code read",
        losses=(Loss("distil", "0"), Loss("agree", "0 0*", 2.0)),
        adversary=Adversary("0*", "teacher"),
        base="simclr",
        needs="simclr",
        original_attack={"steps": 5, "step": 0.25},
    ),
    # ---- Supervised contrastive, with adversaries
    "adv-supcon": Arm(
        group="with labels",
        idea="supcon with adversarial views from a label-free attack",
        source="after Li et al. 2023 (abstract) and RSupCon (code read); "
        "a reconstruction",
        losses=THREE_VIEWS,
        adversary=Adversary("1* 2"),
        weighting=LABELS,
        base="supcon",
        original={"denominator": "all"},
    ),
    "adv-supcon-labels": Arm(
        group="with labels",
        idea="supcon with adversarial views that raise the supervised contrastive loss",
        source="after RSupCon (Kim & Choi 2026; code read)",
        losses=THREE_VIEWS,
        adversary=Adversary("1* 2", "labelled-contrast"),
        weighting=LABELS,
        base="adv-supcon",
        original={"denominator": "all"},
    ),
    "adv-supcon-noise": Arm(
        group="with labels",
        idea="supcon with uniform noise in place of an attack",
        source="control",
        losses=THREE_VIEWS,
        adversary=Adversary("1*", "noise"),
        weighting=LABELS,
        base="adv-supcon",
        original={"denominator": "all"},
    ),
    "supcon-margin": Arm(
        group="with labels",
        idea="cross-entropy and a margin between embeddings of different labels",
        source="Wang et al. 2024 (arXiv 2412.19747); abstract only, a reconstruction",
        losses=(Loss("ce", "1"), Loss("margin", "1 2")),
        base="supervised",
        own_head=True,
    ),
    "anchor": Arm(
        group="with labels",
        idea="supcon with weights on dissimilar positives; cross-entropy under attack",
        source="ANCHOR (arXiv 2510.27599); summary only, a reconstruction",
        losses=(Loss("contrast", "1 1*"), Loss("ce", "1*")),
        adversary=LABEL_ATTACK,
        weighting=(*LABELS, ("hard-positives", {"gamma": 1.0})),
        base="pgd-at",
        original={"denominator": "all"},
    ),
    "ascl": Arm(
        group="with labels",
        idea="supcon among ECGs with the same prediction; adversarial training",
        source="Bui et al. 2021 (ASCL); authors' code read. "
        "Multi-label selection is ours",
        losses=(Loss("ce", "1*"), Loss("contrast", "1 1*"), Loss("kl", "1 1*", 2.0)),
        adversary=LABEL_ATTACK,
        weighting=(*LABELS, ("leaked-local", {})),
        base="pgd-at",
        dual_norm=False,
        own_head=True,
        original={
            "denominator": "all",
            "detach_candidates": False,
            "similarity": "chebyshev",
            "temperature_factor": 0.4,
        },
        original_attack={"steps": 10, "step": 0.226, "train_mode": True},
    ),
}
