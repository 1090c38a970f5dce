"""One evaluated run of the tiny study, to look at single ECGs of it."""

from types import SimpleNamespace

from ecgstudy.evaluation.runner import evaluate
from ecgstudy.pretraining.loop import pretrain
from ecgstudy.running import workflow
from ecgstudy.study import ROOT, Paths, Run, load_study


def evaluated_run(root):
    """`run`, `records`, protocol `folder` and the attacked `test` records."""
    study = load_study(ROOT / "params/tiny.yaml")
    budget = {
        "attacks": [],
        "corruptions": [],
        "epsilons_mv": [0.01, 0.02],
        "steps": 3,
        "check_steps": 2,
        "check_restarts": 1,
        "label_steps": 2,
        "queries": 2,
    }
    evaluation = study.evaluation.model_copy(update=budget)
    study = study.model_copy(update={"evaluation": evaluation})
    paths, run = Paths(study.study, root), Run(study, "builtin", "rocl-ip-hn", 0)
    records = workflow.prepared_records(study, "builtin", paths)
    folder = paths.run("builtin", "rocl-ip-hn", 0)
    pretrain(run, records, folder)
    evaluate(run, records, folder / "slf", "slf")
    table = records.table
    test = records.select(table["split"].eq("test") & table["attacked"])
    return SimpleNamespace(run=run, records=records, folder=folder / "slf", test=test)
