"""Controls of the exploration notebook, and what they show."""

import ipywidgets as widgets
from IPython.display import display

from ecgstudy.evaluation.explore import (
    attack_record,
    perturbation_energy,
    summarise_weights,
    weigh_record,
)
from ecgstudy.evaluation.sample import attacked_sample
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
        folder = paths.protocol(run.dataset, arm, run.seed, "slf")
        ecg = attack_record(chosen, records, folder, record, attack, epsilon_mv)
        title = f"record {record}, {arm}, {attack}, ε = {1000 * epsilon_mv:g} µV"
        delta = ecg.deltas[attack]
        display(draw_ecg(ecg.signal, records.fs, records.leads, delta, title))
        display(show_table(ecg.scores.reset_index()))
        energy = perturbation_energy(ecg, records).assign(attack=attack)
        display(energy_heatmap(energy))
        weights = weigh_record(chosen, records, folder, record)
        display(pull_weights(weights), push_weights(weights))
        display(show_table(summarise_weights(chosen, weights)))

    options = run.study.evaluation
    test = attacked_sample(records, "test", options.max_records)
    attacks = dict.fromkeys([attack, *options.ensemble, *options.attacks])
    attacks.pop("transfer", None)  # is made on another arm's encoder
    budgets = sorted({epsilon_mv, *options.epsilons_mv})
    arms = [arm for arm in run.study.arms if ARMS.find(arm).features is None]
    controls = widgets.interactive(
        show,
        {"manual": True, "manual_name": "Attack"},
        arm=widgets.Dropdown(options=arms, value=run.arm),
        record=widgets.Dropdown(options=list(test.table["record"]), value=record),
        attack=widgets.Dropdown(options=list(attacks), value=attack),
        epsilon_mv=widgets.SelectionSlider(options=budgets, value=epsilon_mv),
    )
    controls.manual_button.style.button_color = "#cfe3f3"
    display(controls)
