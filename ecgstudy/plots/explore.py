"""Controls of the exploration notebook, and what they show."""

from collections.abc import Iterable

import ipywidgets as widgets
from IPython.display import display

from ecgstudy.evaluation.diagnostics import summarise_weights, weigh_record
from ecgstudy.evaluation.explore import attack_record, perturbation_energy
from ecgstudy.evaluation.sample import select_attacked
from ecgstudy.plots.ecg_paper import draw_ecg
from ecgstudy.plots.heatmaps import energy_heatmap
from ecgstudy.plots.single_run import pull_weights, push_weights
from ecgstudy.plots.tables_html import show_table
from ecgstudy.records import EcgRecords
from ecgstudy.registry import ARMS
from ecgstudy.study import Paths, Run


def show_controls(
    run: Run,
    records: EcgRecords,
    paths: Paths,
    record: str,
    attack: str,
    epsilon_mv: float,
) -> None:
    """Display controls for arm, record, attack and ε, for a live notebook.

    What is chosen is computed at the press of a button, which is grey meanwhile.

    Parameters
    ----------
    run, records, paths
        An evaluated run, all records of its data set, and where outputs are.
    record, attack, epsilon_mv
        What the controls show first.
    """

    def show(arm: str, record: str, attack: str, epsilon_mv: float) -> None:
        chosen = Run(run.study, run.dataset, arm, run.seed)
        place = chosen, records, paths.protocol(run.dataset, arm, run.seed, "slf")
        ecg = attack_record(*place, record, [attack], epsilon_mv)
        title = f"record {record}, {arm}, {attack}, ε = {1000 * epsilon_mv:g} µV"
        delta = ecg.deltas[attack]
        display(draw_ecg(ecg.signal, records.fs, records.leads, delta, title))
        display(show_table(ecg.scores.reset_index()))
        display(energy_heatmap(perturbation_energy(ecg, records).assign(attack=attack)))
        weights = weigh_record(*place, record)
        display(pull_weights(weights), push_weights(weights))
        display(show_table(summarise_weights(chosen, weights)))

    options = run.study.evaluation
    test = select_attacked(records, "test", options.max_records)
    attacks = [*options.ensemble, *options.attacks]
    attacks = [name for name in attacks if name != "transfer"]  # needs another encoder
    arms = [arm for arm in run.study.arms if ARMS.find(arm).features is None]
    controls = widgets.interactive(
        show,
        {"manual": True, "manual_name": "Attack"},
        arm=_first(run.arm, arms),
        record=_first(record, test.table["record"]),
        attack=_first(attack, attacks),
        epsilon_mv=_first(epsilon_mv, options.epsilons_mv),
    )
    display(controls)


def _first(value: object, values: Iterable[object]) -> list[object]:
    return list(dict.fromkeys([value, *values]))
