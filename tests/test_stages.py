"""Stages and measurement on tiny models: the right rows, the right tokenizer, the right file."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset, DatasetDict
from safetensors.torch import load_file
from sklearn.metrics import f1_score
from tiny_training import MAX_LENGTH, TASK, soft_splits, tiny_options, write_scratch_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed

import distillation
import encoders.sparsity
import pruning
import training
from compression_config import Options
from data import label_array, load_splits
from encoders.families import encoder_linears
from encoders.scratch import scratch_model
from encoders.sparsity import sparsity
from encoders.start import start_student
from engines.engine import ModelFormat, load_engine, predict_logits
from engines.latency import add_speedups
from evaluation import evaluate, read_logits
from experiments.stages import check_zeros_kept
from metrics import agreement, macro_f1, quality_metrics
from pruning import KeepPruned, cubic_sparsity, prune, prune_
from reporting.results import warnings_of
from runtime.checkpoints import CHECKPOINTS, last_checkpoint, read_trainer_state
from runtime.files import HISTORY_NAME
from task import Task, decide, probabilities
from trainer import LengthGroupedSampler, training_arguments, training_settings
from training import hard_target_loss, train_

FFN_WEIGHT = "bert.encoder.layer.0.intermediate.dense.weight"  # [256, 64] in scratch:2x64


@pytest.fixture(scope="module")
def splits(tiny_csv) -> DatasetDict:
    return load_splits(Options(dataset_path=str(tiny_csv)))[0]


@pytest.fixture(scope="module")
def options() -> Options:
    return tiny_options(
        epochs=1, fine_tune_epochs=2, student_path="teacher:1", calibration_samples=16
    )


@pytest.fixture(scope="module")
def teacher_dir(splits, tmp_path_factory):
    directory = tmp_path_factory.mktemp("teacher")
    return write_scratch_model("scratch:2x64", splits["train"][:]["text"], directory)


@pytest.fixture(scope="module")
def soft(teacher_dir, splits, tmp_path_factory) -> DatasetDict:
    return soft_splits(teacher_dir, splits, tmp_path_factory.mktemp("outputs"))


@pytest.mark.parametrize("window_rows", [7, 1000])
def test_teacher_outputs_are_joined_by_row_id(
    window_rows, teacher_dir, splits, tmp_path, monkeypatch
):
    monkeypatch.setattr(distillation, "WINDOW_ROWS", window_rows)
    distillation.write_teacher_outputs(
        teacher_dir, splits["train"], tmp_path, max_length=MAX_LENGTH, batch=32, device="cpu"
    )
    shuffled = splits["train"].shuffle(seed=3)
    joined = distillation.with_teacher_logits(shuffled, tmp_path)
    engine = load_engine(teacher_dir, "torch", MAX_LENGTH)
    assert joined["id"][:] == shuffled["id"][:]
    for row in list(joined)[:20]:
        expected = predict_logits(engine, [row["text"]])[0]
        assert np.allclose(row["teacher_logits"], expected, atol=1e-5)


def test_a_student_with_its_own_tokenizer_is_trained_with_it(
    teacher_dir, splits, options, tmp_path, monkeypatch
):
    texts = ["quite other words entirely"] * 5
    student_dir = write_scratch_model("scratch:1x64", texts, tmp_path / "own", seed=1)
    vocabulary = {}

    def record_vocabulary(model, tokenizer, *_, **__):
        vocabulary.update(tokenizer.get_vocab())

    monkeypatch.setattr(distillation, "train_", record_vocabulary)
    options = replace(options, student_path=str(student_dir))
    distillation.distill(teacher_dir, splits, TASK, tmp_path / "student", options)
    _, own_tokenizer = start_student(str(student_dir), teacher_dir, TASK, [], MAX_LENGTH)
    assert vocabulary == own_tokenizer.get_vocab()
    assert "quite" in vocabulary and "river" not in vocabulary


@pytest.mark.parametrize("method", ["magnitude", "wanda"])
def test_recovery_keeps_pruned_weights_at_zero_and_trains_the_others(
    method, teacher_dir, soft, options, tmp_path
):
    options = replace(options, prune_method=method, prune_sparsity=0.5)
    prune(teacher_dir, soft, TASK, tmp_path, options)
    before = load_file(teacher_dir / "model.safetensors")[FFN_WEIGHT]
    after = load_file(tmp_path / "model.safetensors")[FFN_WEIGHT]
    is_kept = after != 0
    assert (~is_kept).sum(dim=1).tolist() == [32] * 256
    assert not torch.equal(before[is_kept], after[is_kept])


def test_a_cubic_schedule_reaches_its_sparsity_halfway_and_keeps_a_later_epoch(
    teacher_dir, soft, options, tmp_path, monkeypatch
):
    targets = []
    measured = []  # sparsity after each optimizer step
    on_optimizer_step = KeepPruned.on_optimizer_step

    def record_target(linears, method, target, *rest):
        targets.append(target)
        prune_(linears, method, target, *rest)

    def measure_sparsity(self, args, state, control, **kwargs):
        on_optimizer_step(self, args, state, control, **kwargs)
        measured.append(sparsity(self.pruner.linears))

    monkeypatch.setattr(pruning, "prune_", record_target)
    monkeypatch.setattr(KeepPruned, "on_optimizer_step", measure_sparsity)
    options = replace(
        options,
        prune_schedule="cubic",
        prune_sparsity=0.75,
        fine_tune_epochs=4,
        early_stopping_patience=4,
    )
    prune(teacher_dir, soft, TASK, tmp_path, options)
    steps = len(measured)
    ramp = steps // 2
    schedule = [cubic_sparsity(step, ramp, 0.75) for step in range(1, ramp + 1)]
    assert targets == pytest.approx(schedule)
    expected = schedule + [0.75] * (steps - ramp)
    assert measured == pytest.approx(expected, abs=0.01)
    weight = load_file(tmp_path / "model.safetensors")[FFN_WEIGHT]
    assert (weight == 0).sum(dim=1).tolist() == [48] * 256


def test_lost_zeros_stop_the_run(teacher_dir, soft, options, tmp_path, monkeypatch):
    monkeypatch.setattr(encoders.sparsity, "apply_masks_", lambda *_: None)
    with pytest.raises(RuntimeError, match="zeros after epoch 1, but"):
        prune(teacher_dir, soft, TASK, tmp_path, options)
    rows = {"pruned": {"sparsity": 0.4}}
    check_zeros_kept({"stage": "fp16", "sparsity": 0.4}, rows)
    with pytest.raises(
        RuntimeError, match="fp16 has fewer zeros than the pruned model: its sparsity is 0.39"
    ):
        check_zeros_kept({"stage": "fp16", "sparsity": 0.39}, rows)


def test_an_epoch_before_the_minimum_fraction_of_steps_is_not_the_best(
    teacher_dir, splits, options, tmp_path, monkeypatch
):
    scores = [0.9, 0.8, 0.2, 0.3]  # of the epochs; the first two end before 0.6 of all steps
    remaining = iter(scores)
    monkeypatch.setattr(training, "validation_metrics", lambda _: {"macro_f1": next(remaining)})
    model = AutoModelForSequenceClassification.from_pretrained(teacher_dir)
    tokenizer = AutoTokenizer.from_pretrained(teacher_dir)
    settings = training_settings(
        replace(options, early_stopping_patience=2),
        epochs=4,
        learning_rate=1e-3,
        min_best_fraction=0.6,
    )
    history = train_(model, tokenizer, splits, tmp_path, settings, loss=hard_target_loss())
    state = read_trainer_state(last_checkpoint(tmp_path / CHECKPOINTS))
    assert (state["best_metric"], state["best_global_step"]) == (0.3, state["global_step"])
    metrics = [entry["eval_macro_f1"] for entry in history if "eval_macro_f1" in entry]
    assert metrics == scores


@pytest.mark.parametrize("schedule, best_epoch", [("oneshot", 1), ("cubic", 2)])
def test_only_gradual_pruning_ignores_the_first_half_of_recovery(
    schedule, best_epoch, teacher_dir, soft, options, tmp_path, monkeypatch
):
    scores = iter([0.9, 0.8, 0.2, 0.3])  # of the epochs
    monkeypatch.setattr(training, "validation_metrics", lambda _: {"macro_f1": next(scores)})
    options = replace(
        options, prune_schedule=schedule, fine_tune_epochs=4, early_stopping_patience=4
    )
    pruning.prune(teacher_dir, soft, TASK, tmp_path, options)
    history = json.loads((tmp_path / HISTORY_NAME).read_text())
    assert [epoch["epoch"] for epoch in history if epoch["kept"]] == [best_epoch]


@pytest.mark.parametrize("precision, expected", [("fp32", "no"), ("bf16", "bf16")])
def test_the_precision_of_the_launcher_is_ignored(
    precision, expected, options, tmp_path, monkeypatch
):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    settings = training_settings(
        replace(options, precision=precision), epochs=1, learning_rate=1e-3
    )
    assert training_arguments(tmp_path, settings).mixed_precision == expected


def test_gradient_accumulation_trains_the_same_weights(teacher_dir, splits, options, tmp_path):
    # three full batches per epoch: an incomplete one would be split unevenly
    splits = DatasetDict(splits | {"train": splits["train"].select(range(96))})
    weights = {}
    for steps in (1, 4):
        set_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(
            teacher_dir, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
        )
        tokenizer = AutoTokenizer.from_pretrained(teacher_dir)
        settings = training_settings(
            replace(options, accumulate=steps), epochs=2, learning_rate=1e-3
        )
        train_(model, tokenizer, splits, tmp_path / str(steps), settings, loss=hard_target_loss())
        weights[steps] = model.state_dict()
    for name, weight in weights[1].items():
        assert (weight - weights[4][name]).abs().max().item() < 1e-5


def test_the_evaluated_model_is_that_of_the_directory_named(teacher_dir, splits, tmp_path):
    texts = splits["train"][:]["text"]
    other_dir = write_scratch_model("scratch:1x64", texts, tmp_path / "other", seed=5)
    splits["test"].to_parquet(tmp_path / "test.parquet")
    for name, directory in (("teacher", teacher_dir), ("other", other_dir)):
        row = evaluate(
            ModelFormat(name, directory, "torch"),
            tmp_path / "test.parquet",
            TASK,
            Options(device="cpu", max_length=MAX_LENGTH),
            tmp_path / "teacher.parquet",
            tmp_path / f"{name}.parquet",
        )
    test_texts = splits["test"][:]["text"]
    logits = predict_logits(load_engine(other_dir, "torch", MAX_LENGTH), test_texts)
    teacher_logits = predict_logits(load_engine(teacher_dir, "torch", MAX_LENGTH), test_texts)
    decisions = logits.argmax(1)
    assert np.allclose(read_logits(tmp_path / "other.parquet"), logits, atol=1e-6)
    assert row["agreement"] == pytest.approx((decisions == teacher_logits.argmax(1)).mean())
    expected_f1 = f1_score(label_array(splits["test"]), decisions, average="macro")
    assert row["macro_f1"] == pytest.approx(expected_f1)
    predictions = pd.read_parquet(tmp_path / "other.parquet")
    assert predictions["id"].tolist() == splits["test"][:]["id"]
    assert predictions["label"].tolist() == splits["test"][:]["label"]


def test_labels_keep_their_order_in_the_config(splits):
    task = Task(("eggs", "ham", "spam"), False)
    model, _ = scratch_model("scratch:1x64", task, splits["train"][:]["text"], MAX_LENGTH)
    assert model.config.id2label == {0: "eggs", 1: "ham", 2: "spam"}
    assert model.config.label2id == {"eggs": 0, "ham": 1, "spam": 2}


def test_metrics_computed_by_hand():
    labels = np.array([0, 0, 0, 1])
    decisions = np.array([0, 0, 1, 1])
    assert macro_f1(labels, decisions) == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert agreement(decisions, labels) == 0.75
    logits = np.array([[2.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
    row = quality_metrics(logits, labels, TASK)
    assert row["accuracy"] == 0.75
    assert row["precision"] == 0.5
    assert row["recall"] == 1.0
    assert row["roc_auc"] == 1.0
    odds_of_three = np.array([[0.0, np.log(3.0)]])
    assert probabilities(odds_of_three, multi_label=False)[0] == pytest.approx([0.25, 0.75])


def test_multi_label_decides_each_label_separately():
    logits = np.array([[1.0, 2.0, -1.0], [-1.0, -2.0, -3.0]])
    decisions = decide(logits, multi_label=True)
    assert decisions.tolist() == [[1, 1, 0], [0, 0, 0]]
    assert agreement(decisions, np.array([[1, 0, 0], [0, 0, 0]])) == 0.5
    odds_of_three = np.array([[0.0, np.log(3.0)]])
    assert probabilities(odds_of_three, multi_label=True)[0] == pytest.approx([0.5, 0.75])
    row = quality_metrics(logits, np.array([[1, 0, 1], [0, 1, 0]]), Task(("a", "b", "c"), True))
    assert row["f1.a"] == 1.0
    assert row["f1.b"] == 0.0
    assert row["macro_f1"] == pytest.approx(1 / 3)


def test_speedups_are_the_time_of_the_teacher_over_that_of_the_row():
    rows = {"teacher": {}, "int8": {}, "linear": {}}
    times = {
        "teacher": {"latency_ms_p50": 12.0, "best_wait": 0.0},
        "int8": {"latency_ms_p50": 2.0, "best_wait": 0.1},
        "linear": {"latency_ms_p50": 3.0, "best_wait": 0.05},
        "teacher in onnx": {"latency_ms_p50": 6.0, "best_wait": 0.0},
    }
    baselines = {"torch": "teacher", "onnx": "teacher in onnx"}
    engines = {"teacher": "torch", "int8": "onnx", "linear": "linear"}
    add_speedups(rows, times, baselines, engines)
    assert (rows["int8"]["speedup_torch"], rows["int8"]["speedup_engine"]) == (6.0, 3.0)
    assert (rows["teacher"]["speedup_torch"], rows["linear"]["speedup_engine"]) == (1.0, None)


def test_batches_group_similar_lengths_and_their_order_depends_on_seed_and_epoch():
    lengths = [5 + (i * 37) % 60 for i in range(400)]
    sampler = LengthGroupedSampler(lengths, 8, seed=3)
    order = list(sampler)
    assert order == list(LengthGroupedSampler(lengths, 8, seed=3))
    assert sorted(order) == list(range(400))
    spreads = []
    for start in range(0, 400, 8):
        batch = [lengths[i] for i in order[start : start + 8]]
        spreads.append(max(batch) - min(batch))
    assert np.mean(spreads) < 10
    sampler.set_epoch(1)
    assert list(sampler) != order
    assert list(LengthGroupedSampler(lengths, 8, seed=4)) != order


def test_encoder_linears_exclude_pooler_and_head(splits):
    model, _ = scratch_model("scratch:2x64", TASK, splits["train"][:]["text"], MAX_LENGTH)
    linears = encoder_linears(model)
    assert len(linears) == 12
    assert all(name.startswith("bert.encoder.layer.") for name in linears)
    assert sparsity(linears) == 0


def row(stage: str, parent: str, size_bytes: int, latency_ms: float, f1: float = 0.8) -> dict:
    """A row of the results of a run whose teacher has 100 MB."""
    return {
        "stage": stage,
        "parent": parent,
        "bytes": size_bytes,
        "size_mb": size_bytes / 1e6,
        "latency_ms_p50": latency_ms,
        "packed_mb": size_bytes / 2e6,
        "macro_f1": f1,
        "compression_ratio": 100e6 / size_bytes,
    }


def test_warnings_name_the_stages_that_gained_nothing():
    linear = row("linear", "", 10**6, 1, 0.9)
    teacher = row("teacher", "", 100 * 10**6, 10)
    student = row("student", "teacher", 120 * 10**6, 5)
    pruned = row("pruned", "student", 120 * 10**6, 5)
    larger, unchanged, worse_than_linear = warnings_of([linear, teacher, student, pruned])
    assert "the student is larger than the teacher" in larger and "0.83x" in larger
    assert "pruned is neither smaller nor faster than student" in unchanged
    assert "zstd 60.00 vs. 60.00 MB; macro-F1 " in unchanged
    assert "the final model does not beat the linear baseline" in worse_than_linear


def test_a_smaller_but_slower_format_is_a_warning_and_a_good_one_is_not():
    weak_linear = row("linear", "", 10**6, 1, 0.7)
    teacher = row("teacher", "", 100 * 10**6, 10)
    slow = row("dynamic", "teacher", 50 * 10**6, 40)
    assert warnings_of([weak_linear, teacher, slow])[0].startswith("dynamic is smaller but slower")
    assert warnings_of([weak_linear, teacher, row("student", "teacher", 50 * 10**6, 5)]) == []


def test_duplicates_are_detected_across_unicode_normal_forms(tmp_path):
    composed = "ক\u09cb"
    decomposed = "ক\u09c7\u09be"  # the same letter in two code points
    texts = [f"{composed} {i}" for i in range(100)] + [f"{decomposed} {i}" for i in range(100)]
    path = tmp_path / "forms.csv"
    pd.DataFrame({"text": texts, "label": [i % 2 for i in range(200)]}).to_csv(path, index=False)
    splits = load_splits(Options(dataset_path=str(path)))[0]
    numbers = {}
    for name, split in splits.items():
        numbers[name] = {text.split()[1] for text in split["text"]}
    assert not numbers["train"] & numbers["test"]
    assert not numbers["train"] & numbers["validation"]
    assert isinstance(splits["train"], Dataset)
