"""Two gloo processes train as one does, to float64's rounding."""

from dataclasses import replace

import pytest
import torch
from toy import toy_records, toy_run

from ecgstudy.pretraining import contrast
from ecgstudy.pretraining.arm_type import WHOLE_BATCH
from ecgstudy.pretraining.distributed import broadcast_first, parallel
from ecgstudy.pretraining.loop import pretrain, train_step
from ecgstudy.pretraining.setup import prepare_training
from ecgstudy.pretraining.step import arm_loss
from ecgstudy.pretraining.suffixes import arm_names, get_arm
from ecgstudy.registry import ENCODERS

RECORDS, STEPS = toy_records(), 2
ARMS = [name for name in arm_names() if get_arm(name).losses and "dclw" not in name]
ORIGINAL = {"loss": "original", "attack": "original"}
FEW = [
    "supervised",
    "pgd-at",
    "simclr",
    "supcon",
    "clef",
    "rocl",
    "rocl-ip-hn",
    "rocl-ip-hn in blocks",
    "acl",
    "dynacl",
]
CNN = {"name": "cnn", "options": {"depth": 2, "width": 8}}  # few batch norms, for time
CASES = {
    **{name: (name, {}, CNN) for name in (*ARMS, "rocl-hn-shuffled", "clef-shuffled")},
    **{
        f"{name} original": (name, ORIGINAL, CNN)
        for name in ("clae", "ascl", "advcl", "rocl-hn", "acl")
    },
    "rocl-ip-hn in blocks": ("rocl-ip-hn", {}, CNN),
    **{
        f"rocl-ip {net}": ("rocl-ip", {}, {"name": net})
        for net in ENCODERS
        if net != "pretrained"
    },
}


def run_of(arm, encoder, **options):
    run = toy_run(arm, **options)
    form = run.study.encoder.model_copy(update={"options": {}, **encoder})
    return replace(run, study=run.study.model_copy(update={"encoder": form}))


def trained(case, folder):
    """Losses, logs, gradients, and weights and buffers after `STEPS` steps."""
    arm, options, encoder = CASES[case]
    run = run_of(arm, encoder, **options)
    state, data = prepare_training(run, RECORDS, folder / "runs" / arm / "seed0")
    for module in filter(None, (state.model, state.teacher)):
        module.double()
    data.signals, data.labels = data.signals.double(), data.labels.double()
    data.rows = replace(
        data.rows, metadata={name: v.double() for name, v in data.rows.metadata.items()}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        if case.endswith("blocks"):
            patch.setattr(contrast, "WHOLE_ROWS", 8)
            patch.setattr(contrast, "BLOCK_ROWS", 5)
        return steps_of(state, data)


def steps_of(state, data):
    loss, found = parallel(arm_loss, state.model), {}
    for step in range(STEPS):
        state.progress = step / STEPS
        logged = train_step(state, data, torch.arange(16) + 16 * step, 1e-3, loss)
        found |= {f"{name} of step {step}": value for name, value in logged.items()}
        learnt = {
            name: p for name, p in state.model.named_parameters() if p.requires_grad
        }
        found |= {
            f"gradient of {n} in step {step}": p.grad.clone() for n, p in learnt.items()
        }
    return found | state.model.state_dict()


def be_one_of_two(rank, folder, cases):
    torch.set_num_threads(1)
    group = f"file://{folder}/group-{len(cases)}"
    torch.distributed.init_process_group("gloo", group, rank=rank, world_size=2)
    assert broadcast_first(torch.tensor([rank + 5])).item() == 5
    for case in cases:
        torch.save(trained(case, folder), folder / f"{case}-{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where simclr is trained, which others need."""
    folder = tmp_path_factory.mktemp("two")
    pretrain(run_of("simclr", CNN), RECORDS, folder / "runs" / "simclr" / "seed0")
    return folder


REST = [case for case in CASES if case not in FEW]


@pytest.mark.parametrize(
    "cases", [FEW, pytest.param(REST, marks=pytest.mark.slow)], ids=["few", "rest"]
)
def test_two_processes_have_the_loss_the_gradients_and_the_weights_of_one(
    cases, folder
):
    torch.multiprocessing.spawn(be_one_of_two, (folder, cases), nprocs=2)
    for case in cases:
        alone = trained(case, folder)
        for rank in range(2):
            theirs = torch.load(folder / f"{case}-{rank}.pt")
            assert theirs.keys() == alone.keys()
            for name, value in alone.items():
                text = f"{case}, process {rank}, {name}: "
                torch.testing.assert_close(
                    theirs[name].to(value),
                    value,
                    rtol=1e-8,
                    atol=1e-11,
                    msg=lambda m, text=text: text + m,
                )


def test_every_arm_that_is_trained_is_compared_or_refused_by_the_study():
    refused = {
        name for name in arm_names() if set(get_arm(name).schemes) & set(WHOLE_BATCH)
    }
    assert refused == {"dclw"}
    assert {name for name in arm_names() if get_arm(name).losses} == refused | set(
        CASES
    ) & set(arm_names())
