"""The headline budget of a study, chosen before any test score is computed."""

from ecgstudy.errors import StudyError
from ecgstudy.files import write_text
from ecgstudy.plain_yaml import with_value
from ecgstudy.registry import ARMS
from ecgstudy.running.cache import pretrain_step
from ecgstudy.running.workflow import prepared_records, run_study
from ecgstudy.study import Study


def choose_headline(
    study: Study, *, profile: str | None = None, cores: int | None = None
) -> dict[str, float]:
    """Choose each data set's headline ε and write it into the params file.

    The smallest ε of the grid at which the seed-mean shared AUROC of the arm that sets
    it (`supervised`) under PGD margin on validation records is at most 0.5; if there
    is none, the largest.

    Parameters
    ----------
    study
        The study, read from a params file.
    profile, cores
        As for `ecgstudy.running.engine.make`.

    Raises
    ------
    StudyError
        When no arm of the study sets the headline ε, or its pretraining failed.
    """
    from ecgstudy.evaluation.runner import validation_curve

    runs = [run for run in study.runs() if ARMS.find(run.arm).sets_headline]
    if not runs:
        raise StudyError(
            f"{study.file}: no arm sets the headline ε; add 'supervised' to its arms"
        )
    paths = study.paths
    wanted = [pretrain_step(run, paths) for run in runs]
    run_study(study, wanted, profile=profile, cores=cores)
    chosen, text = {}, study.file.read_text(encoding="utf-8")
    for dataset in study.pretrained:
        records = prepared_records(study, dataset)
        curves = []
        for run in runs:
            if run.dataset == dataset:
                folder = paths.run(run.dataset, run.arm, run.seed)
                curves.append(validation_curve(run, records, folder))
        mean = {e: sum(c[e] for c in curves) / len(curves) for e in sorted(curves[0])}
        low = [epsilon for epsilon, auroc in mean.items() if auroc <= 0.5]
        chosen[dataset] = low[0] if low else max(mean)
        print(f"{dataset}: {mean} -> {chosen[dataset]} mV")
        keys = ("datasets", dataset, "headline_epsilon_mv")
        text = with_value(text, keys, chosen[dataset])
    write_text(study.file, text)
    return chosen
