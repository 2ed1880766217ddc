"""The plan of a run as data: which steps, from what, compared with what, given which rows."""

from dataclasses import replace

import pytest
from datasets import Dataset, DatasetDict

from compression_config import PIPELINES, Options
from experiments.plan import STAGES, Role, Rows, final_rows, plan
from experiments.stages import StageRunner
from task import Task


def options(**changes) -> Options:
    return replace(Options(), student_path="teacher:2", **changes)


def wiring(**changes) -> list[tuple[str, str, str]]:
    """(name, step that it starts from, row that it is compared with) of every step."""
    steps = plan(options(**changes))
    return [(step.stage.name, step.start, step.compared_with) for step in steps]


def test_each_step_of_a_pipeline_starts_from_the_model_before_it():
    assert wiring(pipeline="kd_prune_quant", export="onnx") == [
        ("teacher", "", ""),
        ("linear", "", ""),
        ("distill", "teacher", "teacher"),
        ("prune", "distill", "student"),
        ("quantize", "prune", "pruned"),
        ("export", "prune", "pruned"),
    ]


def test_a_reshaped_student_starts_from_the_teacher_and_is_compared_with_it():
    assert wiring(pipeline="kd_only", trim_vocab="used", ffn_width=0.5, kd_baseline=True) == [
        ("teacher", "", ""),
        ("linear", "", ""),
        ("start", "teacher", "teacher"),
        ("trim", "start", "start"),
        ("narrow", "trim", "trimmed"),
        ("plain", "teacher", ""),
        ("distill", "teacher", "teacher"),
    ]
    steps = plan(options(pipeline="kd_only", trim_vocab="used", kd_baseline=True))
    starts = {step.stage.name: step.student_start for step in steps}
    assert starts["plain"] == starts["distill"] == "trim" and starts["trim"] == ""


def test_without_distillation_the_reshaped_teacher_is_pruned_and_quantized():
    assert wiring(
        pipeline="prune_quant", trim_vocab="used", qat="int8", quant_method="dynamic"
    ) == [
        ("teacher", "", ""),
        ("linear", "", ""),
        ("trim", "teacher", "teacher"),
        ("prune", "trim", "trimmed"),
        ("qat", "prune", "pruned"),
        ("quantize", "qat", "qat"),
    ]


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_the_stages_of_every_pipeline_are_in_its_plan(pipeline):
    names = [step.stage.name for step in plan(options(pipeline=pipeline))]
    assert names == ["teacher", "linear", *PIPELINES[pipeline]]


@pytest.mark.parametrize(
    "changes, rows",
    [
        ({"pipeline": "baseline"}, ["teacher"]),
        ({"pipeline": "kd_prune"}, ["pruned"]),
        ({"pipeline": "kd_quant", "quant_method": "dynamic"}, ["dynamic", "dynamic-onnx"]),
        ({"pipeline": "kd_only", "kd_baseline": True, "tune_threshold": True}, ["tuned"]),
    ],
)
def test_the_final_rows_are_the_quantized_formats_or_the_last_model(changes, rows):
    assert final_rows(plan(options(**changes))) == rows


def test_exported_graphs_are_final_beside_the_last_full_precision_model():
    rows = final_rows(plan(options(pipeline="kd_only", export="openvino")))
    assert rows == ["student", "openvino", "openvino-int8", "openvino-int4"]


def test_patience_that_cannot_run_out_does_not_change_a_stage():
    (teacher,) = [stage for stage in STAGES if stage.role is Role.TEACHER]
    patience = []
    for given in (1, 2, 7):
        selected = teacher.selected_options(
            options(teacher_epochs=3, early_stopping_patience=given)
        )
        patience.append(selected.early_stopping_patience)
    assert patience == [1, 2, 2]


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_no_stage_is_given_the_test_split(stage, tmp_path, monkeypatch):
    rows = {
        name: Dataset.from_dict({"id": [i], "text": [name], "label": [0]})
        for i, name in enumerate(("train", "validation", "test"))
    }
    splits, task = DatasetDict(rows), Task(("0", "1"), False)
    runner = StageRunner("", tmp_path, tmp_path, options(), splits, task)
    monkeypatch.setattr(StageRunner, "with_outputs", lambda self, name, split: split)
    given = runner.rows_for(stage.rows)
    texts = {text for split in given.values() for text in split["text"]}
    assert set(given) == {"train", "validation"} and texts == {"train", "validation"}
    assert stage.rows in Rows
