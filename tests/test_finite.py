"""A NaN or infinity in a loss, logit, weight or score is refused where it occurs first, in one
line."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from datasets import DatasetDict
from safetensors.numpy import load_file, save_file
from served_models import CLASSES, build_model, tiny_config
from timed_models import save_linear
from tiny_training import MAX_LENGTH, TASK, run_arguments, tiny_options, write_scratch_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer, EvalPrediction

from compression_config import Options
from data import load_splits
from distillation import write_teacher_outputs
from encoders.families import encoder_linears
from encoders.start import save_model
from engines.engine import ModelFormat
from engines.linear import FORMAT, LINEAR_NAME, new_pipeline, write_linear
from evaluation import evaluate
from export import export
from inference import load
from metrics import quality_metrics
from pruning import narrow_ffn, prune, prune_
from quantization import (
    QUANTIZERS,
    QuantizationRequest,
    copy_config_and_tokenizer,
    quantize,
    quantize_dynamic_onnx,
    quantize_fp16,
    train_quantization_aware,
)
from runtime.checkpoints import CHECKPOINTS
from runtime.errors import UserError
from runtime.finite import check_fp16_range, check_logits, check_weights
from trainer import training_settings
from training import hard_target_loss, train_, tune_decision_thresholds, validation_metrics

NAN = float("nan")


@pytest.fixture(scope="module")
def splits(tiny_csv) -> DatasetDict:
    return load_splits(Options(dataset_path=str(tiny_csv)))[0]


@pytest.fixture(scope="module")
def options() -> Options:
    return tiny_options(calibration_samples=16, fine_tune_epochs=1, qat_epochs=1, qat="int8")


@pytest.fixture(scope="module")
def sound_dir(splits, tmp_path_factory):
    """A model with finite weights."""
    directory = tmp_path_factory.mktemp("sound")
    return write_scratch_model("scratch:1x64", splits["train"][:]["text"], directory)


@pytest.fixture(scope="module")
def broken_dir(sound_dir, tmp_path_factory):
    """The same model with finite weights whose attention scores overflow: its logits are NaN."""
    directory = tmp_path_factory.mktemp("broken")
    model, tokenizer = load_both(sound_dir)
    attention = model.bert.encoder.layer[0].attention.self
    attention.query.bias.data.fill_(1e30)
    attention.key.bias.data.fill_(1e30)
    return save_model(model, tokenizer, directory)


def load_both(directory):
    model = AutoModelForSequenceClassification.from_pretrained(directory)
    return model, AutoTokenizer.from_pretrained(directory)


def refusal(function, *arguments, **keywords) -> str:
    """The one line of the UserError that a call raises."""
    with pytest.raises(UserError) as caught:
        function(*arguments, **keywords)
    (line,) = caught.value.lines
    return line


def soft(splits) -> DatasetDict:
    """The splits with finite teacher logits."""
    rows = DatasetDict()
    for name in ("train", "validation"):
        logits = [[0.5, -0.5]] * len(splits[name])
        rows[name] = splits[name].add_column("teacher_logits", logits)
    return rows


# Training


def test_the_first_loss_that_is_not_finite_ends_the_training_at_its_step(
    sound_dir, splits, options, tmp_path
):
    calls = []

    def loss(logits, labels, teacher_logits):
        calls.append(1)
        return logits.sum() * (NAN if len(calls) == 3 else 0.01)

    model, tokenizer = load_both(sound_dir)
    settings = training_settings(
        options, epochs=1, learning_rate=0.5, learning_rate_flag="--teacher_lr"
    )
    steps = -(-len(splits["train"]) // options.batch)
    line = refusal(train_, model, tokenizer, splits, tmp_path, settings, loss=loss)
    assert line == (
        f"the loss is not finite (nan or inf) at step 3 of {steps}; lower --teacher_lr (the "
        "learning rate is 0.5)"
    )
    assert not list((tmp_path / CHECKPOINTS).glob("checkpoint-*"))


def test_a_loss_that_is_not_finite_before_any_update_is_not_blamed_on_the_learning_rate(
    broken_dir, splits, options, tmp_path
):
    model, tokenizer = load_both(broken_dir)
    settings = training_settings(replace(options, precision="bf16"), epochs=1, learning_rate=1e-4)
    line = refusal(train_, model, tokenizer, splits, tmp_path, settings, loss=hard_target_loss())
    assert "at step 1 of" in line and "before any update: the initial model or the teacher" in line
    assert "--precision fp32 (it is bf16)" in line


def test_a_diverged_training_is_resumed_with_a_lower_learning_rate(
    sound_dir, splits, options, tmp_path
):
    model, tokenizer = load_both(sound_dir)
    train = partial(train_, loss=hard_target_loss())
    settings = training_settings(options, epochs=2, learning_rate=1e30)
    line = refusal(train, model, tokenizer, splits, tmp_path, settings)
    assert "not finite" in line and "lower --lr" in line
    model, tokenizer = load_both(sound_dir)
    settings = training_settings(options, epochs=1, learning_rate=1e-3)
    history = train(model, tokenizer, splits, tmp_path, settings)
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert len(losses) == 1 and np.isfinite(losses).all()


def test_validation_logits_that_are_not_finite_get_no_metric():
    logits = np.array([[0.0, 1.0], [NAN, 2.0], [3.0, -np.inf]])
    line = refusal(validation_metrics, EvalPrediction(logits, np.array([1, 1, 0])))
    assert "the logits of 2 of 3 texts are not finite, first those of text 2, [nan, 2.0]" in line


def test_quantization_aware_training_of_a_broken_model_ends_at_its_first_step(
    broken_dir, splits, options, tmp_path
):
    rows = soft(splits)
    line = refusal(train_quantization_aware, broken_dir, rows, TASK, tmp_path, options)
    assert "the loss is not finite (nan or inf) at step 1" in line


# Weights


@pytest.mark.parametrize("value", [NAN, float("inf"), -float("inf")])
def test_a_model_with_a_weight_that_is_not_finite_is_not_saved(sound_dir, tmp_path, value):
    model, tokenizer = load_both(sound_dir)
    model.classifier.weight.data[0, :3] = value
    line = refusal(save_model, model, tokenizer, tmp_path / "out")
    assert "3 of 128 values of classifier.weight are not finite" in line and "--lr" in line
    assert not (tmp_path / "out").exists()


def test_a_linear_baseline_with_a_coefficient_that_is_not_finite_is_not_written(tmp_path):
    pipeline = new_pipeline(multi_label=False).fit(["a", "b", "a b"] * 9, [0, 1, 1] * 9)
    pipeline[-1].coef_[0, 1] = NAN
    line = refusal(write_linear, pipeline, tmp_path)
    assert line == "the linear baseline: a value of coefficients is not finite (nan or inf)"
    assert not list(tmp_path.iterdir())


def test_integers_are_not_checked_for_being_finite():
    check_weights({"ids": torch.arange(3), "half": torch.ones(2, dtype=torch.float16)}, "m", "")


def test_fp16_refuses_what_it_cannot_store():
    """65519.9 is rounded to 65504, the largest number of fp16; 65520 to infinity."""
    check_fp16_range({"a": torch.tensor([65_519.0, -65_504.0]), "ids": torch.tensor([10**6])}, "m")
    line = refusal(check_fp16_range, {"a": torch.tensor([1.0, 65_520.0, -1e9])}, "m")
    assert "2 of 3 values of a in m are beyond 65,504" in line


def test_the_fp16_format_of_a_model_with_a_large_weight_is_not_written(sound_dir, tmp_path):
    model, tokenizer = load_both(sound_dir)
    model.classifier.weight.data[1, 5] = 70_000.0
    save_model(model, tokenizer, tmp_path / "in")
    request = QuantizationRequest(tmp_path / "in", tmp_path / "out", ["a"], MAX_LENGTH)
    line = refusal(quantize_fp16, request)
    assert line.startswith("--quant_method is fp16, but 1 of 128 values of classifier.weight")
    assert not list((tmp_path / "out").glob("*.safetensors"))


# Calibration and pruning


def test_activations_that_are_not_finite_give_no_pruning_scores(
    broken_dir, splits, options, tmp_path
):
    rows = soft(splits)
    line = refusal(prune, broken_dir, rows, TASK, tmp_path, replace(options, prune_method="wanda"))
    assert "are not finite (nan or inf) on the calibration texts" in line
    line = refusal(narrow_ffn, broken_dir, splits, TASK, tmp_path, replace(options, ffn_width=0.5))
    assert "are not finite (nan or inf) on the calibration texts" in line
    assert not list(tmp_path.iterdir())


def test_weights_that_are_not_finite_give_no_pruning_scores(sound_dir):
    linears = encoder_linears(load_both(sound_dir)[0])
    name, linear = next(iter(linears.items()))
    linear.weight.data[2, 3] = NAN
    line = refusal(prune_, linears, "magnitude", 0.5, {})
    assert f"1 of {linear.weight.numel():,} values of {name}.weight are not finite" in line


# Logits


def test_a_teacher_with_logits_that_are_not_finite_teaches_no_student(broken_dir, splits, tmp_path):
    line = refusal(
        write_teacher_outputs,
        broken_dir,
        splits["train"],
        tmp_path,
        max_length=MAX_LENGTH,
        batch=32,
        device="cpu",
    )
    rows = len(splits["train"])
    assert f"the logits of {rows} of {rows} texts are not finite" in line
    assert "use another --teacher_path" in line


@pytest.mark.parametrize("format_name", ["torch", "linear"])
def test_a_format_with_logits_that_are_not_finite_gets_no_row(
    format_name, broken_dir, splits, options, tmp_path
):
    directory = broken_dir
    if format_name == "linear":
        directory = save_linear(tmp_path)
        tensors = load_file(directory / LINEAR_NAME)
        tensors["intercepts"][0] = NAN
        save_file(tensors, directory / LINEAR_NAME, {"format": FORMAT})
    splits["test"].to_parquet(tmp_path / "test.parquet")
    line = refusal(
        evaluate,
        ModelFormat("int8", directory, format_name),
        tmp_path / "test.parquet",
        TASK,
        options,
        tmp_path / "int8.parquet",
        tmp_path / "int8.parquet",
    )
    assert line.startswith(f"int8 in {directory}: the logits of ")
    assert not (tmp_path / "int8.parquet").exists()


def test_quality_is_never_computed_from_probabilities_that_are_not_finite():
    logits = np.array([[0.0, 1.0], [np.inf, 2.0]])
    assert "1 of 2 texts" in refusal(quality_metrics, logits, np.array([1, 0]), TASK)
    check_logits(logits[:1], "m", "")


def test_thresholds_are_not_tuned_on_logits_that_are_not_finite(
    broken_dir, splits, options, tmp_path
):
    line = refusal(tune_decision_thresholds, broken_dir, splits, TASK, tmp_path, options)
    assert "are not finite" in line and not list(tmp_path.iterdir())


def test_a_graph_with_logits_that_are_not_finite_is_not_exported(
    broken_dir, splits, options, tmp_path
):
    line = refusal(export, broken_dir, splits, TASK, tmp_path, replace(options, export="onnx"))
    assert line.startswith("onnx/model.onnx: the logits of 16 of 16 texts are not finite")
    assert "use another --quant_method or --export" in line


def test_a_quantized_format_that_is_not_finite_is_refused(
    sound_dir, broken_dir, splits, options, tmp_path, monkeypatch
):
    def store_nan(request: QuantizationRequest) -> None:
        model, _ = load_both(sound_dir)
        model.classifier.bias.data[0] = NAN
        model.save_pretrained(request.out_dir)

    def write_graph_only(request: QuantizationRequest) -> None:
        copy_config_and_tokenizer(request.model_in, request.out_dir)
        quantize_dynamic_onnx(request)

    monkeypatch.setitem(QUANTIZERS, "fp16", {"torch": store_nan})
    monkeypatch.setitem(QUANTIZERS, "dynamic", {"onnx": write_graph_only})
    lines = {}
    for method in ("fp16", "dynamic", "static"):
        settings = replace(options, quant_method=method)
        out_dir = tmp_path / method
        lines[method] = refusal(quantize, broken_dir, splits, TASK, out_dir, settings)
    assert "the quantized model: 1 of 2 values of classifier.bias are not finite" in lines["fp16"]
    assert "the onnx graph: the logits of 16 of 16 texts are not finite" in lines["dynamic"]
    assert lines["static"].startswith("the activation") and "not finite" in lines["static"]


def test_inference_with_logits_that_are_not_finite_gives_no_answer(tmp_path):
    model = build_model(tmp_path, tiny_config(CLASSES, multi_label=False), every_format=False)
    predict = load(model, "onnx", threads=1)
    broken = replace(
        predict.engine, forward=lambda batch: np.full((len(batch["input_ids"]), 2), NAN)
    )
    line = refusal(replace(predict, engine=broken), ["a text"])
    assert "the logits of 1 of 1 texts are not finite" in line and "another format" in line


# A complete run


def test_a_diverged_run_ends_with_one_line_and_a_lower_learning_rate_finishes(
    run_main, tiny_csv, tmp_path, capsys
):
    arguments = run_arguments(
        tiny_csv,
        tmp_path,
        "--pipeline baseline --teacher_path scratch:1x64 --teacher_epochs 2 --max_length 16",
    )
    assert run_main([*arguments, "--teacher_lr", "1e30"]) == 2
    printed = capsys.readouterr()
    (line,) = [line for line in printed.err.splitlines() if line.startswith("main.py: error: ")]
    assert "not finite" in line and "--teacher_lr" in line
    assert "Traceback" not in printed.err and printed.out == ""
    assert not (tmp_path / "compressed_models").exists()
    assert run_main([*arguments, "--teacher_lr", "1e-3", "--overwrite"]) == 0
    assert "teacher" in capsys.readouterr().out
