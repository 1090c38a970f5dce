import hashlib
import os
import sys
from pathlib import Path

import pydantic
import pytest
import yaml

from ecgstudy.errors import StudyError
from ecgstudy.plain_yaml import read_yaml, with_value
from ecgstudy.registry import load_plugins
from ecgstudy.study import ROOT, Paths, Run, Study, derived_seed, load_study

GOOD = {
    "study": "small",
    "title": "Small",
    "datasets": {"builtin": {"headline_epsilon_mv": 0.02}},
    "arms": ["supervised", "rocl"],
    "seeds": [0, 1],
    "training": {"epochs": 1},
}
DELETED = object()


def changed(key, value):
    """`GOOD` with the entry at the dotted `key` replaced."""
    content = yaml.safe_load(yaml.safe_dump(GOOD))
    *parents, last = key.split(".")
    section = content
    for name in parents:
        section = section.setdefault(name, {})
    if value is DELETED:
        del section[last]
    else:
        section[last] = value
    return content


@pytest.fixture
def params(tmp_path):
    """Writes a params file."""

    def write(content):
        path = tmp_path / "small.yaml"
        path.write_text(
            content if isinstance(content, str) else yaml.safe_dump(content)
        )
        return path

    return write


@pytest.mark.parametrize(
    "path", sorted((ROOT / "params").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_params_file_loads_and_is_named_after_its_study(path):
    study = load_study(path)
    assert study.study == path.stem
    assert len(list(study.runs())) == len(study.pretrained) * len(study.arms) * len(
        study.seeds
    )


def test_an_arm_that_needs_the_whole_batch_in_one_place_is_refused_several_processes(
    params,
):
    content = GOOD | {"arms": ["rocl", "dclw"]}
    load_study(params(content))
    with pytest.raises(
        StudyError, match=r"arm 'dclw' compares all anchors .* processes: 1, not 2"
    ):
        load_study(params(content | {"processes": 2}))


def test_processes_count_as_a_parameter_only_where_they_share_a_training(params):
    arms = {"arms": ["random", "supervised", "features-lr", "rocl"]}
    alone, shared = (load_study(params(GOOD | arms | {"processes": n})) for n in (1, 2))
    default = load_study(params(GOOD | arms))
    for ours, one, two in zip(default.runs(), alone.runs(), shared.runs(), strict=True):
        assert "processes" not in ours.parameters()
        assert one.parameters() == ours.parameters()
        trains = two.arm in ("supervised", "rocl")
        assert two.parameters() == {
            **ours.parameters(),
            **({"processes": 2} if trains else {}),
        }
        assert two.processes == (2 if trains else 1)


def test_runs_are_the_grid_in_the_order_of_the_file(params):
    study = load_study(params(GOOD))
    runs = [(run.dataset, run.arm, run.seed) for run in study.runs()]
    assert runs == [
        ("builtin", arm, seed) for arm in ("supervised", "rocl") for seed in (0, 1)
    ]


BAD = {
    # key: (value, what the message says beside file and key)
    "unknown key": ("epoch", 3, "unknown key 'epoch'"),
    "unknown nested key": ("training.epoch", 3, "unknown key 'training.epoch'"),
    "missing key": ("training.epochs", DELETED, "training.epochs: Field required"),
    "ill-typed": ("training.epochs", "many", "training.epochs: .*valid integer.*'many'"),
    "fraction": ("training.epochs", 2.5, "training.epochs: .*integer.*2.5"),
    "not positive": ("training.epochs", 0, "training.epochs: .*greater than 0"),
    "batch of one": ("training.batch_size", 1, "training.batch_size: .*greater than or equal to 2"),
    "over one": ("views.timeout", 1.5, "views.timeout: .*less than or equal to 1"),
    "not a choice": ("training.precision", "float16", "training.precision: .*'bfloat16'.*'float16'"),
    "NaN": ("training.learning_rate", float("nan"), "training.learning_rate: .*finite"),
    "infinite": ("training.temperature", float("inf"), "training.temperature: .*finite"),
    "negative epsilon": ("evaluation.epsilons_mv", [0.02, -0.1], r"evaluation.epsilons_mv.1: .*found -0.1"),
    "negative headline": ("datasets.builtin.headline_epsilon_mv", -0.02, "headline_epsilon_mv: .*-0.02"),
    "epsilon twice": ("evaluation.epsilons_mv", [0.02, 0.02], "evaluation.epsilons_mv: .*0.02 occurs twice"),
    "headline outside": (
        "datasets.builtin.headline_epsilon_mv", 0.03,
        "datasets.builtin.headline_epsilon_mv 0.03 is not in the grid",
    ),
    "label epsilon outside": (
        "evaluation.label_epsilons_mv", [0.02, 0.03],
        r"evaluation.label_epsilons_mv.1 0.03 is not in the grid",
    ),
    "unknown arm": ("arms", ["simclr", "simclear"], "unknown arm 'simclear'; known: random,"),
    "unknown attack": ("evaluation.attacks", ["pgd"], "unknown attack 'pgd'; known: noise"),
    "unknown attack of the ensemble": ("evaluation.ensemble", ["aa"], "unknown attack 'aa'"),
    "unknown encoder": ("encoder.name", "resnet", "unknown encoder 'resnet'; known: resnet1d"),
    "unknown protocol": ("protocols", ["linear"], "protocols.0: .*'slf'.*'linear'"),
    "showcase not in arms": ("showcase", "hcl", "showcase 'hcl' is not among the arms"),
    "no arms": ("arms", [], "arms: .*at least 1 item"),
    "no seeds": ("seeds", [], "seeds: .*at least 1 item"),
    "no data sets": ("datasets", {}, "datasets: .*at least 1 item"),
    "arm twice": ("arms", ["rocl", "simclr", "rocl"], "arms: .*'rocl' occurs twice"),
    "seed twice": ("seeds", [3, 3], "seeds: .*3 occurs twice"),
    "attack twice": ("evaluation.attacks", ["fgsm", "fgsm"], "evaluation.attacks: .*'fgsm' occurs twice"),
    "arms not a list": ("arms", "rocl", "arms: .*valid list"),
    "name with a slash": ("study", "../other", "study: .*pattern"),
    "no process": ("processes", 0, "processes: .*greater than 0"),
    "uneven shares": ("processes", 3, "training.batch_size 256 cannot be shared evenly by 3 processes"),
}  # fmt: skip


@pytest.mark.parametrize(("key", "value", "says"), BAD.values(), ids=BAD)
def test_a_bad_value_is_one_error_that_names_file_and_key(key, value, says, params):
    path = params(changed(key, value))
    with pytest.raises(StudyError, match=says) as caught:
        load_study(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_every_problem_of_a_file_is_named_at_once(params):
    path = params(
        {**changed("training.epochs", "many"), "seeds": ["a"], "colour": "red"}
    )
    with pytest.raises(
        StudyError, match=r"seeds\.0: .*; training\.epochs: .*; unknown key 'colour'"
    ):
        load_study(path)


@pytest.mark.parametrize(
    "content", ["", "3", "- a\n- b\n"], ids=["empty", "number", "list"]
)
def test_a_file_that_is_no_mapping_is_an_error(content, params):
    with pytest.raises(
        StudyError, match=r"small\.yaml: the whole file: .*valid dictionary"
    ):
        load_study(params(content))


def test_a_file_that_is_no_yaml_is_an_error(params):
    with pytest.raises(StudyError, match=r"small\.yaml: line 1: not valid YAML"):
        load_study(params("study: [a, b"))


def test_a_missing_file_is_an_error_that_names_those_there_are(params):
    folder = params(GOOD).parent
    with pytest.raises(
        StudyError, match=r"other\.yaml: no such params file \(studies there: small\)"
    ):
        load_study(folder / "other.yaml")


def test_a_relative_path_means_the_same_where_jupyterlab_starts_its_kernels(
    monkeypatch,
):
    monkeypatch.chdir(ROOT / "notebooks")
    assert load_study("params/tiny.yaml") == load_study(ROOT / "params/tiny.yaml")
    with pytest.raises(
        StudyError,
        match=r"params/tinny\.yaml: no such params file \(studies there: .*tiny",
    ):
        load_study("params/tinny.yaml")


def test_a_file_here_comes_before_one_of_that_name_in_the_checkout(params, monkeypatch):
    folder = params(GOOD).parent
    (folder / "params").mkdir()
    (folder / "params/tiny.yaml").write_text((folder / "small.yaml").read_text())
    monkeypatch.chdir(folder)
    assert (
        load_study("params/tiny.yaml").study
        == load_study("small.yaml").study
        == "small"
    )


def test_a_folder_and_a_binary_file_are_errors(tmp_path):
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for path in (tmp_path, tmp_path / "binary.yaml"):
        with pytest.raises(StudyError, match="not a readable params file") as caught:
            load_study(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system", "!!python/object/new:os.mkdir"]
)
def test_python_tags_are_refused_and_do_not_run(tag, params, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = params(f"title: {tag} ['mkdir ran']\n")
    with pytest.raises(
        StudyError, match="line 1: not valid YAML: could not determine a constructor"
    ):
        load_study(path)
    assert [found.name for found in tmp_path.iterdir()] == ["small.yaml"]


@pytest.mark.parametrize("number", ["1e-2", "1E-2", "10.e-3", "+1.0e-02", ".01"])
def test_numbers_in_scientific_notation_are_numbers_also_in_free_options(
    number, params
):
    """YAML 1.1 reads 1e-2, without a point, as text."""
    text = yaml.safe_dump(changed("datasets.builtin.options", {})).replace(
        "options: {}", f"options: {{a: {number}}}"
    )
    study = load_study(params(f"{text}views: {{noise_mv: {number}}}\n"))
    assert study.views.noise_mv == study.datasets["builtin"].options["a"] == 0.01


def test_numbers_are_those_of_yaml_1_2(params):
    text = "options: {ward: 010, record: 04015, after: '1:30', note: yes}"
    content = yaml.safe_dump(changed("datasets.builtin.options", {}))
    study = load_study(params(content.replace("options: {}", text)))
    found = study.datasets["builtin"].options
    assert found == {"ward": 10, "record": 4015, "after": "1:30", "note": "yes"}


LAYOUTS = {
    "two blanks": "datasets:\n  mine:\n    epsilon: 0.02\n",
    "four blanks": "datasets:\n    mine:\n        epsilon: 0.02\n",
    "braces": "datasets: {mine: {epsilon: 0.02}}\n",
    "quoted name": 'datasets:\n  "mine":\n    epsilon: 0.02\n',
    "aligned": "datasets:\n  mine:\n    epsilon:   0.02   # why\n    fs: 100\n",
    "comment": "datasets:\n  mine:\n    # epsilon: 0.02 before\n    epsilon: 0.02\n",
    "exponent": "datasets:\n  other: {epsilon: 1E-2}\n  mine: {fs: 1, epsilon: 2E-2}",
    "next line": "datasets:\n  mine:\n    epsilon:\n      0.02\n",
}


@pytest.mark.parametrize("text", LAYOUTS.values(), ids=LAYOUTS)
def test_one_value_of_a_document_is_replaced_and_nothing_else(text):
    keys = ("datasets", "mine", "epsilon")
    changed = with_value(text, keys, 0.005)
    assert read_yaml(changed)["datasets"]["mine"]["epsilon"] == 0.005
    assert changed in (text.replace(old, "0.005") for old in ("0.02", "2E-2")) or (
        changed == "0.005".join(text.rsplit("0.02", 1))
    )


def test_a_value_that_cannot_be_replaced_is_named_with_its_line():
    with pytest.raises(
        StudyError, match=r"line 1: write epsilon: 0\.01 there yourself"
    ):
        with_value("epsilon: '0.02 mV'\n", ("epsilon",), 0.01)


@pytest.mark.parametrize("text", ["e1", "1e", "1e5x", "x1e5", "'1e-2'"])
def test_text_that_looks_like_a_number_stays_text(text, params):
    content = yaml.safe_dump(GOOD).replace("title: Small", f"title: {text}")
    assert load_study(params(content)).title == text.strip("'")


@pytest.mark.parametrize(
    ("addition", "key"),
    [
        ("seeds: [7]", "seeds"),
        ("views: {noise_mv: 0, shift_s: 0, 'noise_mv': 0}", "noise_mv"),
    ],
)
def test_a_key_that_occurs_twice_is_an_error_that_names_it(addition, key, params):
    content = yaml.safe_dump(GOOD)
    path, line = params(content + addition + "\n"), content.count("\n") + 1
    with pytest.raises(StudyError) as caught:
        load_study(path)
    found = f'{path}: line {line}: not valid YAML: found duplicate key "{key}"'
    assert str(caught.value).startswith(found)


def test_a_study_cannot_be_changed():
    study = Study.model_validate(GOOD)
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        study.seeds = [2]


def parameters(arm="rocl", **changes):
    study = Study.model_validate({**GOOD, **changes})
    return Run(study, "builtin", arm, 0).parameters()


def test_parameters_hold_what_decides_the_encoder_and_nothing_else():
    base = parameters()
    assert (
        parameters(
            title="Other", evaluation={"steps": 7}, probe={"epochs": 3}, seeds=[0]
        )
        == base
    )
    assert parameters(training={"epochs": 2}) != base
    assert parameters(encoder={"options": {"size": "base"}}) != base
    assert parameters(views={"noise_mv": 0.5}) != base
    every = [run.parameters() for run in Study.model_validate(GOOD).runs()]
    assert [(p["arm"], p["seed"]) for p in every] == [
        ("supervised", 0), ("supervised", 1), ("rocl", 0), ("rocl", 1),
    ]  # fmt: skip
    other = {"builtin": {"headline_epsilon_mv": 0.05}}
    assert parameters(datasets=other)["epsilon_mv"] == 0.05
    assert parameters("supervised", datasets=other) == parameters("supervised"), (
        "no adversary, no ε"
    )


def test_paths_are_where_the_contract_says(tmp_path):
    paths = Paths("small", tmp_path)
    home = tmp_path / "small"
    assert paths.home == home
    assert paths.data("mitdb") == home / "data/mitdb"
    assert paths.run("mitdb", "rocl", 2) == home / "runs/mitdb/rocl/seed2"
    assert (
        paths.protocol("mitdb", "rocl", 2, "slf") == home / "runs/mitdb/rocl/seed2/slf"
    )
    assert (paths.tables, paths.figures, paths.report) == tuple(
        home / name for name in ("tables", "figures", "report")
    )
    assert Paths("small").home == Path(__file__).parent.parent / "outputs/small"


def test_derived_seeds_are_stable_and_differ():
    assert derived_seed("toy", 0, "views") == int(
        hashlib.sha256(b"toy/0/views").hexdigest()[:14], 16
    )
    assert derived_seed("mitdb", 0, "weights") == 60455327818221129
    parts = [("a", 0, "b"), ("a", 1, "b"), ("a", 0, "c"), ("c", 0, "b")]
    seeds = [derived_seed(*part) for part in parts]
    assert len(set(seeds)) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.fixture
def plugins():
    """Forgets, after the test, which plugins were loaded."""
    yield
    for name in [name for name in sys.modules if name.startswith("ecgstudy_plugin_")]:
        del sys.modules[name]


def test_a_plugin_runs_once_and_a_missing_one_is_an_error(
    tmp_path, monkeypatch, plugins
):
    monkeypatch.chdir(tmp_path)
    Path("toy_plugin.py").write_text(
        "with open('ran', 'a') as file:\n    file.write('x')\n"
    )
    for _ in range(2):
        load_plugins("toy_plugin.py")
    assert Path("ran").read_text() == "x"
    with pytest.raises(StudyError, match=r"plugin absent\.py: no such file"):
        load_plugins("absent.py")


def test_plugins_of_one_name_in_two_folders_both_run(tmp_path, monkeypatch, plugins):
    monkeypatch.chdir(tmp_path)
    for folder in ("one", "two"):
        Path(folder).mkdir()
        Path(folder, "mine.py").write_text(
            f"from pathlib import Path\nPath('{folder}/ran').touch()\n"
        )
    load_plugins(os.pathsep.join(["one/mine.py", "two/mine.py"]))
    assert all(Path(folder, "ran").exists() for folder in ("one", "two"))


def test_a_plugin_that_failed_fails_again(tmp_path, plugins):
    (tmp_path / "broken.py").write_text("1 / 0\n")
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            load_plugins(str(tmp_path / "broken.py"))


def test_an_arm_that_needs_another_wants_it_in_the_study_and_runs_after_it(params):
    with pytest.raises(
        StudyError,
        match="arm 'advcl' needs the encoder of 'simclr': add 'simclr' to arms",
    ):
        load_study(params(changed("arms", ["advcl"])))
    study = load_study(params(changed("arms", ["advcl", "random", "simclr"])))
    assert [run.arm for run in study.runs()][-1] == "advcl"


def test_jobs_ask_for_a_gpu_where_networks_run_unless_the_params_say_otherwise(params):
    study = load_study(
        params(
            changed(
                "resources", {"pretrain": {"mem_mb": 3000}, "evaluate": {"gpus": 0}}
            )
        )
    )
    assert study.asked("prepare") == {"mem_mb": 8000, "runtime": 240, "gpu": 0}
    assert study.asked("pretrain") == {"mem_mb": 3000, "runtime": 1440, "gpu": 1}
    assert study.asked("evaluate") == {"mem_mb": 8000, "runtime": 1440, "gpu": 0}
    assert load_study(params(changed("device", "cpu"))).asked("pretrain")["gpu"] == 0
    four = load_study(params(changed("processes", 4)))
    assert [
        four.asked(step)["gpu"] for step in ("prepare", "pretrain", "evaluate")
    ] == [0, 4, 1]
