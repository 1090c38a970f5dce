"""Figures, one function each: a table or frame in, a matplotlib figure out."""

from ecgstudy.plots.comparisons import (
    cost,
    epsilon_curves,
    forest,
    geometry,
    geometry_points,
    pareto,
    summary,
)
from ecgstudy.plots.ecg_paper import (
    draw_ecg,
    draw_perturbations,
    ecg_values,
    pick_typical,
)
from ecgstudy.plots.explore import show_controls
from ecgstudy.plots.heatmaps import attack_heatmap, corruption_heatmap, energy_heatmap
from ecgstudy.plots.single_run import (
    age_sex,
    amplitudes,
    attack_bars,
    class_counts,
    embedding_plane,
    epsilon_curve,
    loss_curves,
    measure_amplitudes,
    pull_weights,
    push_weights,
    similarities,
)
from ecgstudy.plots.style import save_figure
from ecgstudy.plots.tables_html import show_table

__all__ = [
    "age_sex",
    "amplitudes",
    "attack_bars",
    "attack_heatmap",
    "class_counts",
    "corruption_heatmap",
    "cost",
    "draw_ecg",
    "draw_perturbations",
    "ecg_values",
    "embedding_plane",
    "energy_heatmap",
    "epsilon_curve",
    "epsilon_curves",
    "forest",
    "geometry",
    "geometry_points",
    "loss_curves",
    "measure_amplitudes",
    "pareto",
    "pick_typical",
    "pull_weights",
    "push_weights",
    "save_figure",
    "show_controls",
    "show_table",
    "similarities",
    "summary",
]
