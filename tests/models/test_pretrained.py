"""Released networks as encoders: what they see, that attacks pass through, and how a
study uses them."""

import hashlib
import re
import sys

import pytest
import torch
import yaml
from networks import noise
from scipy import signal
from test_study import GOOD
from torch import Generator, nn
from toy import toy_records, toy_run

from ecgstudy.attacks.api import Budget, Victim
from ecgstudy.attacks.named import get_attack
from ecgstudy.errors import StudyError
from ecgstudy.evaluation.classifier import fit_victim
from ecgstudy.models.checkpoints import load_encoder, save_encoder
from ecgstudy.models.encoders import build_encoder
from ecgstudy.models.heads import Classifier
from ecgstudy.models.released.adapter import Adapted, SwitchedNorm, _switch_norms
from ecgstudy.params import EncoderOptions
from ecgstudy.pretraining.loop import pretrain
from ecgstudy.registry import PLUGIN, load_plugins
from ecgstudy.running import cache
from ecgstudy.study import ROOT, Paths, Run, Study, load_study

DOCS = (ROOT / "docs/released_encoders.md").read_text(encoding="utf-8")
CLEF = "ecgstudy.models.released.net1d:clef"


@pytest.fixture(scope="module")
def my_net(tmp_path_factory):
    """The plugin of the documentation, loaded as `make study PLUGINS=my_net.py`
    does."""
    path = tmp_path_factory.mktemp("plugin") / "my_net.py"
    path.write_text(
        re.search(r"```python\n# my_net.py\n(.*?)```", DOCS, re.DOTALL).group(1)
    )
    load_plugins(str(path))
    (name,) = [name for name in sys.modules if name.startswith(f"{PLUGIN}my_net_")]
    yield sys.modules[name]
    sys.modules.pop(name)


@pytest.fixture(scope="module")
def released(my_net, tmp_path_factory):
    """Options of an encoder with released weights: the plugin's, with statistics as
    after training."""
    torch.manual_seed(0)
    net = my_net.make().net.train()
    net(2 * noise(8, 2, 1000) + 1)
    path = tmp_path_factory.mktemp("weights") / "my_net.pt"
    torch.save(net.state_dict(), path)
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"factory": "my_net:make", "weights": str(path), "sha256": checksum}


def build(options, mean=(0.0, 0.0), std=1.0, dual=False):
    form = {"data_leads": "I II", "data_fs": 100.0, **options}
    return build_encoder(
        "pretrained", form, torch.tensor(mean), torch.tensor(std), dual
    ).eval()


# ---- what the network sees -----------------------------------------------------------


def test_the_network_sees_the_leads_rate_band_and_scale_that_it_was_trained_on(
    released, my_net
):
    made, x = (
        build(released, mean=(0.2, -0.4), std=0.3),
        noise(3, 2, 400).cumsum(-1) / 10,
    )
    wanted = torch.stack(
        [x[:, 1], x[:, 1] - x[:, 0]], 1
    ).double()  # II, and III = II − I
    dense = signal.resample_poly(wanted.numpy(), 5, 2, axis=-1, padtype="edge")
    band = signal.butter(4, (0.5, 40.0), "band", fs=250, output="sos")
    clean = torch.tensor(signal.sosfiltfilt(band, dense, axis=-1, padlen=750).copy())
    clean = (clean - clean.mean(-1, keepdim=True)) / clean.std(-1, keepdim=True)
    expected = made.backbone.net.double()(clean)
    made.backbone.net.float()
    torch.testing.assert_close(made(x).double(), expected, rtol=0.03, atol=0.03)


@pytest.mark.parametrize(
    "options", [{"factory": "my_net:make"}, {"factory": CLEF, "lead": "II"}]
)
def test_statistics_of_the_training_records_do_not_matter(my_net, options):
    torch.manual_seed(0)
    plain, x = build(options), noise(3, 2, 300)
    torch.manual_seed(0)
    assert torch.equal(build(options, mean=(0.3, -2.0), std=0.05)(x), plain(x))


def test_features_of_a_long_record_are_the_mean_over_its_windows(released):
    made, x = (
        build(released),
        noise(2, 2, 900),
    )  # 2,250 samples at 250 Hz: three windows of 1,000
    parts = made.backbone.adapt(x)
    assert parts.shape == (2, 3, 2, 1000)
    each = torch.stack([made.backbone.net(parts[:, k]) for k in range(3)])
    torch.testing.assert_close(made(x), each.mean(0))


def test_records_do_not_influence_each_other(released):
    made, x = build(released), noise(4, 2, 300)
    torch.testing.assert_close(made(x)[1:2], made(x[1:2]), rtol=1e-4, atol=1e-5)


# ---- gradients and attacks -----------------------------------------------------------


@pytest.mark.parametrize("scale", ["lead", "record", "range"])
def test_the_gradient_in_mv_is_that_of_finite_differences(scale, my_net):
    torch.manual_seed(0)
    made = my_net.make()
    net = nn.Sequential(
        nn.Conv1d(2, 3, 5, 2), nn.Tanh(), nn.AdaptiveAvgPool1d(1), nn.Flatten()
    )
    takes = type(made.takes)(
        ("II", "III"), 250.0, 60, scale, band_hz=(0.5, 40.0), baseline_s=0.1
    )
    released = type(made)(net, 3, takes, net)
    adapted = Adapted(released, ("I", "II"), 100.0, dual=False).double().eval()
    x = noise(1, 2, 1, 30).double().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: adapted(x, True), x, eps=1e-7, atol=1e-4, fast_mode=True
    )


def test_an_attack_stays_within_epsilon_in_mv_of_the_users_signal_and_moves_the_scores(
    released,
):
    encoder, x = build(released, std=0.2).requires_grad_(False), 0.2 * noise(6, 2, 400)
    torch.manual_seed(0)
    model = Classifier(encoder, nn.Linear(encoder.features, 3)).eval()
    labels = torch.eye(3)[torch.arange(6) % 3]
    victim, budget = Victim(model, False, encoder, 100.0), Budget(0.01, steps=5)
    delta = get_attack("pgd-margin")(
        victim, x, labels, budget, Generator().manual_seed(0)
    )
    assert delta.shape == x.shape
    assert delta.abs().max() <= 0.01 + 1e-7
    assert (delta.abs().amax(-1) > 0.005).all()
    true = labels.argmax(1, keepdim=True)
    with torch.no_grad():
        before, after = (
            victim.scores(s).gather(1, true).mean() for s in (x, x + delta)
        )
    assert after < before - 0.001


# ---- norms, dropout, precision -------------------------------------------------------


def test_released_batch_norms_are_doubled_from_the_same_statistics_and_then_go_apart(
    released,
):
    made, x = build(released, dual=True), noise(8, 2, 400)
    assert torch.equal(made(x, False), made(x, True))
    norm = next(m for m in made.modules() if isinstance(m, SwitchedNorm))
    kept = norm.norms[0].running_mean.clone()
    assert kept.abs().max() > 0
    made.train()(x, True)
    assert torch.equal(norm.norms[0].running_mean, kept)
    assert not torch.equal(norm.norms[1].running_mean, kept)
    assert not torch.allclose(made.eval()(x, False), made(x, True))


def test_without_dual_norms_and_in_nets_without_norms_there_is_one_set(released):
    assert (
        len(
            next(
                m for m in build(released).modules() if isinstance(m, SwitchedNorm)
            ).norms
        )
        == 1
    )
    made = build({"factory": CLEF}, dual=True)
    assert not [m for m in made.modules() if isinstance(m, SwitchedNorm)]


def test_dropout_is_off_wherever_it_is():
    net = _switch_norms(
        nn.Sequential(
            nn.Linear(2, 2), nn.Sequential(nn.Dropout(0.5), nn.Dropout1d(0.3))
        ),
        False,
    )
    assert [m.p for m in net.modules() if hasattr(m, "p")] == [0.0, 0.0]


def test_features_are_float32_under_bfloat16(released):
    made, x = build(released), noise(4, 2, 400)
    with torch.autocast("cpu", torch.bfloat16):
        rough = made(x)
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, made(x), rtol=0.1, atol=0.1)


# ---- in a study ----------------------------------------------------------------------


def run_of(arm, released, **training):
    toy = toy_run(arm, **training)
    options = {**released, "data_leads": "I II", "data_fs": 100.0}
    encoder = EncoderOptions(name="pretrained", options=options, projection=16)
    return Run(toy.study.model_copy(update={"encoder": encoder}), "toy", arm, 0)


def test_the_arm_random_keeps_the_released_encoder_and_it_loads_where_its_file_is_not(
    released, tmp_path, monkeypatch
):
    run, folder = run_of("random", released), tmp_path / "random" / "seed0"
    assert pretrain(run, toy_records(), folder) == []
    monkeypatch.setattr(
        "ecgstudy.models.released.adapter.read_weights", None
    )  # not asked for
    stored, _, form = load_encoder(folder)
    assert form["encoder"]["options"]["sha256"] == released["sha256"]
    original = torch.load(released["weights"], weights_only=True)
    found = stored.state_dict()
    torch.testing.assert_close(
        found["backbone.net.conv.weight"], original["conv.weight"], rtol=1e-3, atol=1e-6
    )  # rounded to float16, as all stored encoders
    assert torch.equal(
        found["backbone.net.norm.norms.0.running_mean"], original["norm.running_mean"]
    )


def test_pretraining_goes_on_from_the_released_weights_with_any_loss_and_aff_tunes_all(
    released, tmp_path
):
    run, folder, records = (
        run_of("rocl", released),
        tmp_path / "rocl" / "seed0",
        toy_records(),
    )
    (epoch,) = pretrain(run, records, folder)
    assert epoch["loss"] > 0
    stored, _, form = load_encoder(folder)
    original = torch.load(released["weights"], weights_only=True)["conv.weight"]
    far = (stored.state_dict()["backbone.net.conv.weight"] - original).abs().max()
    assert form["dual"]
    assert 1e-4 < far < 0.1  # it has learnt, and has not begun anew
    aff = run.study.aff.model_copy(
        update={"epochs": 1, "batch_size": 40, "attack_steps": 1}
    )
    tuning = Run(run.study.model_copy(update={"aff": aff}), "toy", "rocl", 0)
    fit_victim(tuning, records, folder, "aff")
    tuned, _, _ = load_encoder(folder / "aff")
    moved = tuned.state_dict()["backbone.net.conv.weight"]
    assert not torch.equal(moved, stored.state_dict()["backbone.net.conv.weight"])


def test_weights_survive_our_checkpoints(released, tmp_path):
    made, x = build(released, std=0.4, dual=True), noise(4, 2, 400)
    options = {**released, "data_leads": "I II", "data_fs": 100.0}
    form = {"encoder": {"name": "pretrained", "options": options}, "dual": True}
    save_encoder(
        tmp_path,
        nn.ModuleDict({"encoder": made}),
        {**form, "leads": ["I", "II"], "classes": ["A"]},
    )
    loaded, _, _ = load_encoder(tmp_path)
    torch.testing.assert_close(loaded(x), made(x), rtol=0.01, atol=0.01)


SECTION = {
    "factory": CLEF,
    "weights": "clef_small.ckpt",
    "sha256": "0" * 64,
    "options": {"lead": "II"},
}
BUILTIN = {"headline_epsilon_mv": 0.02, "leads": ["I", "II"], "fs": 100}


def study(encoder=SECTION, **datasets):
    return Study.model_validate(
        GOOD | {"datasets": datasets or {"builtin": BUILTIN}, "encoder": encoder}
    )


def test_a_params_file_names_factory_weights_checksum_and_options():
    encoder = study().encoder
    told = {"data_leads": "I II", "data_fs": 100.0, "lead": "II"}
    assert encoder.name == "pretrained"
    assert (
        encoder.options
        == {key: SECTION[key] for key in ("factory", "weights", "sha256")} | told
    )
    assert study().model_validate(study().model_dump()) == study()
    assert study(SECTION | {"projection": 64}).encoder.projection == 64
    assert Study.model_validate(GOOD).model_dump()["encoder"].keys() == {
        "name",
        "options",
        "projection",
    }


def test_other_weights_and_another_plugin_are_another_run(my_net):
    def key(encoder):
        run = next(study(encoder).runs())
        return cache.pretrain_step(run, Paths("small")).key

    keys = [key(SECTION), key(SECTION | {"sha256": "1" * 64}), key({"factory": CLEF})]
    assert len(set(keys)) == 3
    run = next(study(SECTION | {"factory": "my_net:make"}).runs())
    (plugin,) = cache.pretrain_step(run, Paths("small")).parameters["plugins"]
    assert plugin.startswith("my_net.py ")


def test_leads_and_rate_of_the_data_must_be_known_and_the_same():
    with pytest.raises(
        StudyError,
        match=r"datasets\.builtin: a pretrained encoder has to know leads and fs",
    ):
        study(builtin={"headline_epsilon_mv": 0.02, "fs": 100})
    other = BUILTIN | {"leads": ["II"]}
    with pytest.raises(
        StudyError, match=r"datasets builtin, mitdb: .* the same leads and fs"
    ):
        study(builtin=BUILTIN, mitdb=other)


def test_an_unknown_key_beside_the_factory_is_still_an_error(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(
        yaml.safe_dump(
            GOOD | {"datasets": {"builtin": BUILTIN}, "encoder": SECTION | {"a": 1}}
        )
    )
    with pytest.raises(StudyError, match=r"unknown key 'encoder\.a'"):
        load_study(path)


@pytest.mark.parametrize(
    "factory",
    [
        "os:system",
        "subprocess:run",
        "ecgstudy.files:write_text",
        "antigravity:geohash",
        "clef",
        "",
    ],
)
def test_a_params_file_cannot_name_other_code(factory):
    sys.modules.pop("antigravity", None)
    with pytest.raises(
        StudyError,
        match=r"encoder\.factory: .* neither a module of ecgstudy\.models",
    ):
        study({"factory": factory})
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    "name", ["_released", "functional", "StudyError", "LEADS", "gone", ""]
)
def test_a_factory_is_a_public_function_of_its_own_module(name):
    with pytest.raises(
        StudyError, match=r"is no function of ecgstudy\.models\.released\.net1d"
    ):
        build({"factory": f"ecgstudy.models.released.net1d:{name}"})


def test_what_makes_no_released_network_is_refused():
    options = {
        "factory": "ecgstudy.models.released.net1d:SameConv",
        "inputs": 1,
        "outputs": 1,
    }
    with pytest.raises(
        StudyError, match=r"makes no ecgstudy\.models\.released\.Released"
    ):
        build(options)


def test_data_with_other_leads_than_told_are_refused(my_net):
    with pytest.raises(StudyError, match="made for leads II, and the data have 2"):
        build({"factory": "my_net:make", "data_leads": "II"})


def test_an_unknown_option_is_named():
    with pytest.raises(StudyError, match=r"does not take the options .*colour"):
        build({"factory": CLEF, "colour": "red"})


def test_the_example_says_which_weights_are_missing():
    options = load_study(ROOT / "params/foundation.yaml").encoder.options
    with pytest.raises(
        StudyError, match=r"released weights are not part of this repository"
    ):
        build_encoder("pretrained", options, torch.zeros(12), torch.ones(()), False)
