"""What a cached stage and a cached evaluation depend on: every input changes the keys of the stages
that read it and of those made from them, and no other keys.

The keys are computed for a plan with every stage, in plan order, without making a stage.
"""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from datasets import Dataset, DatasetDict

from compression_config import OPTIONS, PLACE_OPTIONS, Options
from engines.engine import ModelFormat
from experiments import plan, stages
from experiments.evaluation_cache import EvaluationCache
from experiments.stages import StageRunner
from task import Task

TASK = Task(("clean", "hate"), multi_label=False)

EVERY_STAGE = Options(
    teacher_path="scratch:2x64",
    student_path="scratch:1x64",
    device="cpu",
    precision="fp32",
    teacher_lr=1e-3,
    lr=1e-3,
    kd_baseline=True,
    tune_threshold=True,
    trim_vocab="used",
    ffn_width=0.5,
    qat="int8",
    quant_method="static",
    export="onnx",
    max_f1_drop=0.1,
    quant_auto=True,
)

CHAIN = ["teacher", "start", "trim", "narrow", "distill", "prune", "qat", "tune"]
FORMATS = ["quantize", "export"]
BASELINES = ["linear", "plain"]
EVERY_NAME = {*CHAIN, *FORMATS, *BASELINES}
TRAINED = {"teacher", "plain", "distill", "prune", "qat"}


def from_(name: str) -> set[str]:
    """A stage of the chain, all stages that are made from it, and the student without teacher."""
    after = {*CHAIN[CHAIN.index(name) :], *FORMATS}
    if CHAIN.index(name) <= CHAIN.index("narrow"):
        after.add("plain")  # it starts from the same reshaped student
    return after


OTHER_VALUES = {  # option -> (another value, the stages whose keys must change)
    "seed": (7, EVERY_NAME - {"linear"}),
    "max_length": (64, EVERY_NAME - {"linear"}),
    "batch": (16, EVERY_NAME - {"linear"}),
    "device": ("cuda", EVERY_NAME - {"linear"}),
    "precision": ("bf16", EVERY_NAME - {"linear"}),
    "weight_decay": (0.5, EVERY_NAME - {"linear"}),
    "warmup_ratio": (0.5, EVERY_NAME - {"linear"}),
    "accumulate": (2, EVERY_NAME - {"linear"}),
    "class_weights": ("balanced", EVERY_NAME - {"linear"}),
    "early_stopping_patience": (1, EVERY_NAME - {"linear"}),
    "teacher_path": ("scratch:3x64", EVERY_NAME - {"linear"}),
    "teacher_epochs": (4, EVERY_NAME - {"linear"}),
    "teacher_lr": (1e-2, EVERY_NAME - {"linear"}),
    "student_path": ("scratch:2x64", from_("start")),
    "student_tokenizer": ("teacher", from_("start")),
    "trim_vocab": ("auto", from_("trim")),
    "ffn_width": (0.25, from_("narrow")),
    "calibration_samples": (9, from_("narrow")),
    "epochs": (4, from_("distill") | {"plain"}),
    "lr": (1e-2, from_("distill") | {"plain"}),
    "kd_alpha": (0.5, from_("distill")),
    "kd_temperature": (3.0, from_("distill")),
    "kd_method": ("hidden", from_("distill")),
    "prune_method": ("wanda", from_("prune")),
    "prune_sparsity": (0.5, from_("prune")),
    "prune_schedule": ("cubic", from_("prune")),
    "prune_layers": ("ffn", from_("prune")),
    "fine_tune_epochs": (1, from_("prune")),
    "qat": ("int4", from_("qat")),
    "qat_epochs": (1, from_("qat")),
    "quant_method": ("dynamic", {"quantize"}),
    "export": ("openvino", {"export"}),
    "max_f1_drop": (0.2, set(FORMATS)),
    "quant_auto": (False, set(FORMATS)),
}

NO_OWN_KEY = {  # they decide which stages there are, or which rows the splits have
    *("pipeline", "run_ablation", "seeds", "kd_baseline", "tune_threshold"),
    *("dataset_path", "validation_path", "test_path", "text_column", "label_columns"),
    *("group_column", "validation_fraction", "test_fraction", "data_fraction", "num_folds"),
    *("unlabeled_path", "augment", "no_header", "max_input_gb"),
    *("label_names", "label_separator"),
}


def make_splits() -> DatasetDict:
    splits = {}
    for number, name in enumerate(("train", "validation", "test")):
        ids = list(range(100 * number, 100 * number + 6))
        texts = [f"{name} text {i}" for i in ids]
        splits[name] = Dataset.from_dict({"id": ids, "text": texts, "label": [0, 1] * 3})
    return DatasetDict(splits)


SPLITS = make_splits()


def changed_cell(split: str, column: str, value) -> DatasetDict:
    """The splits with another value in one cell."""
    values = SPLITS[split][:][column]
    values[3] = value
    rows = SPLITS[split].remove_columns(column).add_column(column, values)
    return DatasetDict({**SPLITS, split: rows})


def make_runner(
    folder: Path, options: Options = EVERY_STAGE, splits: DatasetDict = SPLITS, task: Task = TASK
) -> StageRunner:
    return StageRunner("", folder, folder, options, splits, task)


def keys_of(runner: StageRunner) -> dict[str, str]:
    """Stage -> fingerprint, of every step of the plan."""
    keys = {}
    for step in runner.plan:
        name = step.stage.name
        keys[name] = runner.fingerprint(step)
        (runner.directory / name).mkdir(exist_ok=True)
        record = json.dumps({"fingerprint": keys[name], "files": {}})
        (runner.directory / name / "stage.json").write_text(record)
    return keys


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if before[name] != after[name]}


@pytest.fixture
def keys(tmp_path) -> dict[str, str]:
    return keys_of(make_runner(tmp_path))


def test_the_plan_has_every_stage_and_equal_runs_have_equal_keys(keys, tmp_path):
    assert keys.keys() == EVERY_NAME == {stage.name for stage in plan.STAGES}
    assert keys_of(make_runner(tmp_path)) == keys


def test_every_option_is_listed():
    assert OTHER_VALUES.keys() | NO_OWN_KEY | set(PLACE_OPTIONS) == set(OPTIONS)


@pytest.mark.parametrize("option", OTHER_VALUES)
def test_an_option_changes_the_keys_of_its_stages_and_of_those_made_from_them(
    option, keys, tmp_path
):
    value, expected = OTHER_VALUES[option]
    options = replace(EVERY_STAGE, **{option: value})
    assert changed(keys, keys_of(make_runner(tmp_path, options))) == expected


@pytest.mark.parametrize("option", sorted({*PLACE_OPTIONS, *NO_OWN_KEY} & set(OPTIONS)))
def test_other_options_change_no_key_on_the_same_rows(option, keys, tmp_path):
    values = {bool: True, int: 2, float: 0.5, str: "other"}
    if option in ("pipeline", "kd_baseline", "tune_threshold", "unlabeled_path", "augment"):
        return  # the stages differ
    options = replace(EVERY_STAGE, **{option: values[OPTIONS[option].kind]})
    assert changed(keys, keys_of(make_runner(tmp_path, options))) == set()


@pytest.mark.parametrize("column, value", [("text", "other"), ("label", 0), ("id", 99)])
def test_a_training_row_changes_every_key(column, value, keys, tmp_path):
    runner = make_runner(tmp_path, splits=changed_cell("train", column, value))
    assert changed(keys, keys_of(runner)) == EVERY_NAME


@pytest.mark.parametrize("column, value", [("text", "other"), ("label", 0), ("id", 199)])
def test_a_validation_row_changes_every_key_but_that_of_the_linear_baseline(
    column, value, keys, tmp_path
):
    runner = make_runner(tmp_path, splits=changed_cell("validation", column, value))
    assert changed(keys, keys_of(runner)) == EVERY_NAME - {"linear"}


@pytest.mark.parametrize("column, value", [("text", "other"), ("label", 0), ("id", 299)])
def test_a_test_row_changes_no_key(column, value, keys, tmp_path):
    runner = make_runner(tmp_path, splits=changed_cell("test", column, value))
    assert changed(keys, keys_of(runner)) == set()


def test_the_names_of_the_labels_change_every_key(keys, tmp_path):
    runner = make_runner(tmp_path, task=Task(("hate", "clean"), multi_label=False))
    assert changed(keys, keys_of(runner)) == EVERY_NAME


def test_unlabeled_texts_change_the_stages_that_learn_from_them(keys, tmp_path):
    found = []
    for text in ("a text", "another"):
        runner = make_runner(tmp_path)
        runner.unlabeled = Dataset.from_dict({"id": [900], "text": [text], "label": [0]})
        found.append(keys_of(runner))
    first, second = found
    # `plain` is among them: it starts from the reshaped student, which depends on the texts
    assert changed(first, second) == from_("trim")
    assert changed(keys, first) == from_("trim")


@pytest.mark.parametrize(
    "flag, expected", [("teacher", EVERY_NAME - {"linear"}), ("student", from_("start"))]
)
def test_the_weights_of_a_local_model_are_part_of_the_keys(flag, expected, tmp_path):
    found = []
    model = tmp_path / "model"
    model.mkdir()
    for content in ("one", "two"):
        (model / "model.safetensors").write_text(content)
        options = replace(EVERY_STAGE, **{f"{flag}_path": str(model)})
        found.append(keys_of(make_runner(tmp_path, options)))
    assert changed(*found) == expected


def test_the_number_of_processes_changes_the_keys_of_trained_stages(keys, tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "process_count", lambda: 2)
    found = changed(keys, keys_of(make_runner(tmp_path)))
    assert found == EVERY_NAME - {"linear"}
    unchained = {step.stage.name for step in make_runner(tmp_path).plan if step.stage.is_trained}
    assert unchained == TRAINED


@pytest.mark.parametrize("name", [*CHAIN, *FORMATS, *BASELINES])
def test_the_version_of_a_stage_changes_its_key_and_those_made_from_it(
    name, keys, tmp_path, monkeypatch
):
    newer = []
    for stage in plan.STAGES:
        version = stage.version + (stage.name == name)
        newer.append(replace(stage, version=version))
    monkeypatch.setattr(plan, "STAGES", tuple(newer))
    expected = {name}
    if name == "teacher":
        expected = EVERY_NAME - {"linear"}
    elif name in CHAIN:
        expected = from_(name)
    assert changed(keys, keys_of(make_runner(tmp_path))) == expected


# Evaluations


def evaluation_key(
    folder: Path, runner: StageRunner, *, student: str = "abc", teacher: str = "abc"
) -> str:
    """The key of the student's evaluation; `student` and `teacher` are hashes of their weights."""
    for name, digest in (("teacher", teacher), ("distill", student)):
        (folder / name).mkdir(exist_ok=True)
        record = {"fingerprint": name, "files": {"model.safetensors": digest}}
        (folder / name / "stage.json").write_text(json.dumps(record))
    runner.call = SimpleNamespace()
    cache: EvaluationCache = runner.evaluations
    return cache.key(ModelFormat("student", folder / "distill", "torch"))


def with_group(value: str) -> DatasetDict:
    test = SPLITS["test"].add_column("group", ["a"] * 5 + [value])
    return DatasetDict({**SPLITS, "test": test})


EVALUATION_INPUTS = {
    "a test text": {"splits": changed_cell("test", "text", "other")},
    "a test label": {"splits": changed_cell("test", "label", 0)},
    "a test id": {"splits": changed_cell("test", "id", 299)},
    "a validation text": {"splits": changed_cell("validation", "text", "other")},
    "a validation label": {"splits": changed_cell("validation", "label", 0)},
    "groups": {"splits": with_group("a")},
    "a group": {"splits": with_group("b")},
    "the length": {"options": replace(EVERY_STAGE, max_length=64)},
    "the device": {"options": replace(EVERY_STAGE, device="cuda")},
    "the seed": {"options": replace(EVERY_STAGE, seed=7)},
    "the gate": {"options": replace(EVERY_STAGE, max_f1_drop=None)},
}


def test_everything_that_an_evaluation_reads_changes_its_key(tmp_path):
    keys = {"nothing": evaluation_key(tmp_path, make_runner(tmp_path))}
    for name, change in EVALUATION_INPUTS.items():
        keys[name] = evaluation_key(tmp_path, make_runner(tmp_path, **change))
    keys["the student"] = evaluation_key(tmp_path, make_runner(tmp_path), student="def")
    keys["the teacher"] = evaluation_key(tmp_path, make_runner(tmp_path), teacher="def")
    assert len(set(keys.values())) == len(keys), keys
    assert evaluation_key(tmp_path, make_runner(tmp_path)) == keys["nothing"]


def test_without_a_gate_validation_rows_and_training_options_change_no_evaluation(tmp_path):
    ungated = replace(EVERY_STAGE, max_f1_drop=None, quant_auto=False)
    before = evaluation_key(tmp_path, make_runner(tmp_path, ungated))
    splits = changed_cell("validation", "text", "other")
    assert evaluation_key(tmp_path, make_runner(tmp_path, ungated, splits)) == before
    other = replace(ungated, kd_alpha=0.1)
    assert evaluation_key(tmp_path, make_runner(tmp_path, other)) == before
