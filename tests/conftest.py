"""One thread a test process, and which tests `make test-fast` leaves out."""

import pytest
import torch

torch.set_num_threads(
    1
)  # as a study's jobs have: sums in another order round otherwise

MEDIUM = {
    "test_bare_torch",
    "test_attacked",
    "test_benchmarks",
    "test_bfloat16_gradients",
    "test_diagnostics",
    "test_distributed",
    "test_engine",
    "test_explore",
    "test_features",
    "test_finetune",
    "test_foundation",
    "test_golden",
    "test_gpus",
    "test_html",
    "test_launch",
    "test_learning",
    "test_loop",
    "test_memory",
    "test_mock_gpu",
    "test_masking_checks",
    "test_notebooks",
    "test_peers",
    "test_protocols",
    "test_resume",
    "test_robustness",
    "test_workflow",
    "test_single_ecgs",
    "test_universal",
}
"""Files whose tests train, attack or start processes: seconds each. They belong to
`make test`; `make test-fast` runs the others."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.stem in MEDIUM:
            item.add_marker("medium")
