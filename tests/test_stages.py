"""Stages and measurement on tiny models: the right rows, the right tokenizer, the right file."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset, DatasetDict
from safetensors.torch import load_file
from sklearn.metrics import f1_score
from transformers import AutoModelForSequenceClassification, AutoTokenizer, set_seed

import distillation
import pruning
import training
from benchmark import add_speedups
from compression_config import COMPUTE_OPTIONS, Options, select
from data import label_array, load_splits
from distillation import with_teacher_logits, write_teacher_outputs
from encoders import sparsity
from encoders.families import encoder_linears
from encoders.scratch import scratch_model
from encoders.start import save_model, start_student
from engines.engine import ModelFormat, load_engine, predict_logits
from evaluation import decide, evaluate, probabilities, read_logits
from experiments.stages import check_zeros_kept
from losses import hard_label_loss
from metrics import agreement, macro_f1, quality_metrics
from pruning import KeepPruned, cubic_sparsity, prune, prune_
from reporting.results import warnings_of
from task import Task
from training import LengthGroupedSampler, train_, training_arguments

TASK = Task(("0", "1"), False)


@pytest.fixture(scope="module")
def splits(tiny_csv) -> DatasetDict:
    return load_splits(Options(dataset_path=str(tiny_csv)))[0]


@pytest.fixture(scope="module")
def options() -> Options:
    return replace(
        Options(),
        device="cpu",
        precision="fp32",
        lr=1e-3,
        max_length=32,
        epochs=1,
        fine_tune_epochs=2,
        student_path="teacher:1",
        calibration_samples=16,
    )


@pytest.fixture(scope="module")
def teacher_dir(splits, tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("teacher")
    return save_model(*scratch_model("scratch:2x64", TASK, splits["train"][:]["text"], 32), folder)


def soft(teacher_dir: Path, splits: DatasetDict, options: Options, folder: Path) -> DatasetDict:
    """Training and validation rows with the teacher's logits."""
    found = {}
    for name in ("train", "validation"):
        (folder / name).mkdir()
        write_teacher_outputs(
            teacher_dir, splits[name], folder / name, select(options, COMPUTE_OPTIONS)
        )
        found[name] = with_teacher_logits(splits[name], folder / name)
    return DatasetDict(found)


@pytest.mark.parametrize("window", [7, 1000])
def test_teacher_outputs_are_joined_by_row_id(
    window, teacher_dir, splits, options, tmp_path, monkeypatch
):
    monkeypatch.setattr(distillation, "WINDOW", window)
    write_teacher_outputs(teacher_dir, splits["train"], tmp_path, select(options, COMPUTE_OPTIONS))
    joined = with_teacher_logits(splits["train"].shuffle(seed=3), tmp_path)
    engine = load_engine(teacher_dir, "torch", 32)
    assert joined["id"][:] == splits["train"].shuffle(seed=3)["id"][:]
    for row in list(joined)[:20]:
        assert np.allclose(
            row["teacher_logits"], predict_logits(engine, [row["text"]])[0], atol=1e-5
        )


def test_a_student_reads_with_its_own_tokenizer(
    teacher_dir, splits, options, tmp_path, monkeypatch
):
    torch.manual_seed(1)
    other = save_model(
        *scratch_model("scratch:1x64", TASK, ["quite other words entirely"] * 5, 32),
        tmp_path / "own",
    )
    seen = {}
    monkeypatch.setattr(
        distillation,
        "train_",
        lambda model, tokenizer, *_, **__: seen.update(tokenizer.get_vocab()),
    )
    chosen = replace(options, student_path=str(other))
    distillation.distill(teacher_dir, splits, TASK, tmp_path / "student", chosen)
    assert seen == start_student(str(other), teacher_dir, TASK, [], 32)[1].get_vocab()
    assert "quite" in seen and "river" not in seen


@pytest.mark.parametrize("method", ["magnitude", "wanda"])
def test_recovery_keeps_the_zeros_and_moves_the_rest(
    method, teacher_dir, splits, options, tmp_path, tmp_path_factory
):
    chosen = replace(options, prune_method=method, prune_sparsity=0.5)
    prune(
        teacher_dir,
        soft(teacher_dir, splits, options, tmp_path_factory.mktemp("soft")),
        TASK,
        tmp_path,
        chosen,
    )
    before, after = (
        load_file(teacher_dir / "model.safetensors"),
        load_file(tmp_path / "model.safetensors"),
    )
    name = "bert.encoder.layer.0.intermediate.dense.weight"
    assert (after[name] == 0).sum(dim=1).tolist() == [32] * 256
    kept = after[name] != 0
    assert not torch.equal(before[name][kept], after[name][kept])


def test_a_cubic_schedule_reaches_its_sparsity_halfway_and_keeps_a_later_epoch(
    teacher_dir, splits, options, tmp_path, monkeypatch
):
    taught = soft(teacher_dir, splits, options, tmp_path)
    seen = []
    monkeypatch.setattr(
        pruning,
        "prune_",
        lambda linears, method, sparsity, *rest: (
            seen.append(sparsity),
            prune_(linears, method, sparsity, *rest),
        ),
    )
    steps = []
    hold = KeepPruned.on_optimizer_step

    def watched(self, args, state, control, **kwargs):
        hold(self, args, state, control, **kwargs)
        steps.append((state.global_step + 1, sparsity.sparsity(self.pruner.linears)))

    monkeypatch.setattr(KeepPruned, "on_optimizer_step", watched)
    chosen = replace(
        options,
        prune_schedule="cubic",
        prune_sparsity=0.75,
        fine_tune_epochs=4,
        early_stopping_patience=4,
    )
    (tmp_path / "out").mkdir()
    prune(teacher_dir, taught, TASK, tmp_path / "out", chosen)
    ramp = len(steps) // 2
    assert seen == pytest.approx([cubic_sparsity(step, ramp, 0.75) for step in range(1, ramp + 1)])
    wanted = [min(cubic_sparsity(step, ramp, 0.75), 0.75) for step, _ in steps]
    assert [found for _, found in steps] == pytest.approx(wanted, abs=0.01)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert (weights["bert.encoder.layer.0.intermediate.dense.weight"] == 0).sum(dim=1).tolist() == [
        48
    ] * 256


def test_zeros_that_are_lost_stop_the_run(teacher_dir, splits, options, tmp_path, monkeypatch):
    taught = soft(teacher_dir, splits, options, tmp_path)
    monkeypatch.setattr(sparsity, "apply_masks_", lambda *_: None)
    with pytest.raises(RuntimeError, match="zeros after epoch 1, but"):
        prune(teacher_dir, taught, TASK, tmp_path, options)
    pruned = {"pruned": {"sparsity": 0.4}}
    check_zeros_kept({"stage": "fp16", "sparsity": 0.4}, pruned)
    with pytest.raises(RuntimeError, match="fp16 has a sparsity of 0.39"):
        check_zeros_kept({"stage": "fp16", "sparsity": 0.39}, pruned)


def test_an_epoch_before_it_settles_is_not_kept(
    teacher_dir, splits, options, tmp_path, monkeypatch
):
    scores = iter([0.9, 0.8, 0.2, 0.3])
    monkeypatch.setattr(training, "validation_metrics", lambda _: {"macro_f1": next(scores)})
    model = AutoModelForSequenceClassification.from_pretrained(teacher_dir)
    chosen = replace(options, early_stopping_patience=2)
    history = train_(
        model,
        AutoTokenizer.from_pretrained(teacher_dir),
        splits,
        tmp_path,
        chosen,
        epochs=4,
        lr=1e-3,
        settle=0.6,
        loss=lambda logits, labels, _: hard_label_loss(logits, labels),
    )
    state = training.read_state(training.last_checkpoint(tmp_path / "checkpoints"))
    assert (state["best_metric"], state["best_global_step"]) == (0.3, state["global_step"])
    assert [entry["eval_macro_f1"] for entry in history if "eval_macro_f1" in entry] == [
        0.9,
        0.8,
        0.2,
        0.3,
    ]


def test_the_launchers_precision_does_not_count(options, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    for precision, wanted in (("fp32", "no"), ("bf16", "bf16")):
        chosen = replace(options, precision=precision)
        assert training_arguments(tmp_path, chosen, 1, 1e-3).mixed_precision == wanted


def test_a_batch_in_parts_trains_the_same_weights(teacher_dir, splits, options, tmp_path):
    splits = DatasetDict(splits | {"train": splits["train"].select(range(96))})
    weights = {}
    for parts in (1, 4):
        set_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(
            teacher_dir, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
        )
        chosen = replace(options, accumulate=parts)
        train_(
            model,
            AutoTokenizer.from_pretrained(teacher_dir),
            splits,
            tmp_path / str(parts),
            chosen,
            epochs=2,
            lr=1e-3,
            loss=lambda logits, labels, _: hard_label_loss(logits, labels),
        )
        weights[parts] = model.state_dict()
    assert (
        max((weights[1][name] - weights[4][name]).abs().max().item() for name in weights[1]) < 1e-5
    )


def test_what_is_evaluated_is_the_directory_named(teacher_dir, splits, tmp_path):
    torch.manual_seed(5)
    other = save_model(
        *scratch_model("scratch:1x64", TASK, splits["train"][:]["text"], 32), tmp_path / "other"
    )
    splits["test"].to_parquet(tmp_path / "test.parquet")
    compute = Options(device="cpu", max_length=32)
    for name, folder in (("teacher", teacher_dir), ("other", other)):
        row = evaluate(
            ModelFormat(name, folder, "torch"),
            tmp_path / "test.parquet",
            TASK,
            compute,
            tmp_path / "teacher.parquet",
            tmp_path / f"{name}.parquet",
        )
    ours = predict_logits(load_engine(other, "torch", 32), splits["test"][:]["text"])
    teachers = predict_logits(load_engine(teacher_dir, "torch", 32), splits["test"][:]["text"])
    assert np.allclose(read_logits(tmp_path / "other.parquet"), ours, atol=1e-6)
    assert row["agreement"] == pytest.approx((ours.argmax(1) == teachers.argmax(1)).mean())
    assert row["macro_f1"] == pytest.approx(
        f1_score(label_array(splits["test"]), ours.argmax(1), average="macro")
    )
    kept = pd.read_parquet(tmp_path / "other.parquet")
    assert (
        kept["id"].tolist() == splits["test"][:]["id"]
        and kept["label"].tolist() == splits["test"][:]["label"]
    )


def test_labels_keep_their_order_into_the_config(splits, tmp_path):
    task = Task(("eggs", "ham", "spam"), False)
    model, _ = scratch_model("scratch:1x64", task, splits["train"][:]["text"], 32)
    assert [model.config.id2label[i] for i in range(3)] == ["eggs", "ham", "spam"]
    assert model.config.label2id["spam"] == 2


def test_metrics_by_hand():
    labels, decisions = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])
    assert macro_f1(labels, decisions) == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert agreement(decisions, labels) == 0.75
    logits = np.array([[2.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
    row = quality_metrics(logits, labels, TASK)
    assert (row["accuracy"], row["precision"], row["recall"], row["roc_auc"]) == (
        0.75,
        0.5,
        1.0,
        1.0,
    )
    assert probabilities(np.array([[0.0, np.log(3.0)]]), False)[0] == pytest.approx([0.25, 0.75])


def test_multi_label_decides_each_label_alone():
    logits = np.array([[1.0, 2.0, -1.0], [-1.0, -2.0, -3.0]])
    assert decide(logits, True).tolist() == [[1, 1, 0], [0, 0, 0]]
    assert agreement(decide(logits, True), np.array([[1, 0, 0], [0, 0, 0]])) == 0.5
    assert probabilities(np.array([[0.0, np.log(3.0)]]), True)[0] == pytest.approx([0.5, 0.75])
    row = quality_metrics(logits, np.array([[1, 0, 1], [0, 1, 0]]), Task(("a", "b", "c"), True))
    assert row["f1.a"] == 1.0 and row["f1.b"] == 0.0 and row["macro_f1"] == pytest.approx(1 / 3)


def test_speedups_are_the_teachers_time_over_the_rows():
    rows = {"teacher": {}, "int8": {}, "linear": {}}
    times = {
        name: {"latency_ms_p50": ms}
        for name, ms in {
            "teacher": 12.0,
            "int8": 2.0,
            "linear": 3.0,
            "teacher in onnx": 6.0,
        }.items()
    }
    add_speedups(
        rows,
        times,
        {"torch": "teacher", "onnx": "teacher in onnx"},
        {"teacher": "torch", "int8": "onnx", "linear": "linear"},
    )
    assert (rows["int8"]["speedup_torch"], rows["int8"]["speedup_engine"]) == (6.0, 3.0)
    assert (rows["teacher"]["speedup_torch"], rows["linear"]["speedup_engine"]) == (1.0, None)


def test_batches_group_like_lengths_and_their_order_is_of_seed_and_epoch():
    lengths = [5 + (i * 37) % 60 for i in range(400)]
    sampler = LengthGroupedSampler(lengths, 8, seed=3)
    first, again = list(sampler), list(LengthGroupedSampler(lengths, 8, seed=3))
    assert first == again and sorted(first) == list(range(400))
    spread = [
        max(lengths[i] for i in first[k : k + 8]) - min(lengths[i] for i in first[k : k + 8])
        for k in range(0, 400, 8)
    ]
    assert np.mean(spread) < 10
    sampler.set_epoch(1)
    assert list(sampler) != first and list(LengthGroupedSampler(lengths, 8, seed=4)) != first


def test_encoder_linears_leave_out_pooler_and_head(splits):
    model, _ = scratch_model("scratch:2x64", TASK, splits["train"][:]["text"], 32)
    linears = encoder_linears(model)
    assert len(linears) == 12 and all(name.startswith("bert.encoder.layer.") for name in linears)
    assert sparsity(linears) == 0


def row(stage: str, parent: str, size: int, ms: float, f1: float = 0.8) -> dict:
    return {
        "stage": stage,
        "parent": parent,
        "bytes": size,
        "size_mb": size / 1e6,
        "latency_ms_p50": ms,
        "packed_mb": size / 2e6,
        "macro_f1": f1,
        "compression_ratio": 100e6 / size,
    }


def test_the_log_says_in_words_what_bought_nothing():
    linear, teacher = row("linear", "", 10**6, 1, 0.9), row("teacher", "", 100 * 10**6, 10)
    student, pruned = (
        row("student", "teacher", 120 * 10**6, 5),
        row("pruned", "student", 120 * 10**6, 5),
    )
    said = warnings_of([linear, teacher, student, pruned])
    assert "the student is larger than the teacher" in said[0] and "0.83x" in said[0]
    assert "pruned made nothing smaller or faster than student" in said[1]
    assert "packed, 60.00 against 60.00 MB; macro-F1 " in said[1]
    assert "the final model does not beat the linear reference" in said[2] and len(said) == 3
    slow = row("dynamic", "teacher", 50 * 10**6, 40)
    assert warnings_of([row("linear", "", 10**6, 1, 0.7), teacher, slow])[0].startswith(
        "dynamic is smaller but slower"
    )
    fine = [row("linear", "", 10**6, 1, 0.7), teacher, row("student", "teacher", 50 * 10**6, 5)]
    assert warnings_of(fine) == []


def test_a_copy_of_a_text_may_differ_in_its_normal_form(tmp_path):
    one, two = "ক\u09cb", "ক\u09c7\u09be"  # one letter, composed and decomposed
    body = [f"{one} {i}" for i in range(100)] + [f"{two} {i}" for i in range(100)]
    path = tmp_path / "forms.csv"
    pd.DataFrame({"text": body, "label": [i % 2 for i in range(200)]}).to_csv(path, index=False)
    splits = load_splits(Options(dataset_path=str(path)))[0]
    numbers = {name: {text.split()[1] for text in split["text"]} for name, split in splits.items()}
    assert not numbers["train"] & numbers["test"] and not numbers["train"] & numbers["validation"]
    assert isinstance(splits["train"], Dataset)
