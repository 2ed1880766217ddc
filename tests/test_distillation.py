"""Losses of states against values by hand and independent references; live teachers; texts
without labels."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from builders import FILLER, NASTY
from datasets import DatasetDict, concatenate_datasets
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSequenceClassification, TrainerCallback

import distillation
import pruning
from compression_config import COMPUTE_OPTIONS, Options, UserError, select
from data import augment, load_splits, write_unlabeled
from distillation import (
    StateRecorder,
    distill,
    layer_map,
    live_teacher_loss,
    with_teacher_logits,
    write_teacher_outputs,
)
from encoders.scratch import scratch_model
from encoders.start import has_known_queries, save_model
from losses import (
    KD_LOSSES,
    NO_LABEL,
    STATE_LOSSES,
    States,
    attention_loss,
    distillation_loss,
    hard_label_loss,
    hidden_loss,
    relation_loss,
    state_loss,
)
from task import Task
from training import class_weights

TASK = Task(("0", "1"), False)
MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])


def states(
    seed: int, layers: int = 2, width: int = 6, dtype: torch.dtype = torch.float32
) -> States:
    """States of two texts of three and two tokens."""
    rng = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=rng, dtype=dtype)  # noqa: E731
    return States(
        [draw(2, 4, 5) for _ in range(layers)],
        [draw(2, 3, 4, 4) for _ in range(layers)],
        [draw(2, 2, 4, width // 2) for _ in range(3)],
    )


def test_hidden_loss_by_hand():
    ours = States([torch.tensor([[[1.0, 2.0], [9.0, 9.0]]])], [], [])
    theirs = States([torch.tensor([[[0.0, 4.0], [0.0, 0.0]]])], [], [])
    assert hidden_loss(ours, theirs, torch.tensor([[1, 0]])).item() == (1 + 4) / 2
    assert hidden_loss(ours, theirs, torch.tensor([[1, 1]])).item() == (1 + 4 + 81 + 81) / 4
    two = States([*ours.hidden, torch.zeros(1, 2, 2)], [], [])
    assert (
        hidden_loss(two, States(theirs.hidden * 2, [], []), torch.tensor([[1, 0]])).item()
        == (2.5 + 16 / 2) / 2
    )


def test_attention_loss_by_hand():
    ours = States([], [torch.tensor([[[[1.0, 5.0], [5.0, 5.0]], [[3.0, 5.0], [5.0, 5.0]]]])], [])
    theirs = States([], [torch.zeros(1, 2, 2, 2)], [])
    assert (
        attention_loss(ours, theirs, torch.tensor([[1, 0]])).item() == (1 + 9) / 2
    )  # two heads, one pair of tokens
    assert attention_loss(ours, theirs, torch.tensor([[1, 1]])).item() == (1 + 9 + 6 * 25) / 8


def reference_relation_loss(ours: States, theirs: States) -> float:
    """MiniLMv2's loss, written anew with loops over texts, heads and tokens."""
    total, count = 0.0, 0
    for one, other in zip(ours.relations, theirs.relations, strict=True):
        for row, length in enumerate(MASK.sum(1).tolist()):
            for head in range(one.shape[1]):
                for token in range(length):
                    target, found = (
                        torch.softmax(
                            torch.stack(
                                [v[row, head, token] @ v[row, head, i] for i in range(length)]
                            )
                            / math.sqrt(v.shape[-1]),
                            0,
                        )
                        for v in (other, one)
                    )
                    total += (target * (target / found).log()).sum().item()
                    count += 1
    return total / count


def test_relation_loss_against_a_reference_with_other_widths():
    ours, theirs = states(0, width=6), states(1, width=10)
    assert relation_loss(ours, theirs, MASK).item() == pytest.approx(
        reference_relation_loss(ours, theirs), rel=1e-5
    )


@pytest.mark.parametrize("name", STATE_LOSSES)
def test_a_state_loss_is_zero_at_the_teacher_positive_elsewhere_and_blind_to_padding(name):
    theirs, loss = states(1), STATE_LOSSES[name]
    assert loss(theirs, theirs, MASK).item() == pytest.approx(0, abs=1e-6)
    assert loss(states(0), theirs, MASK).item() > 1e-3
    noisy = States(*([values.clone() for values in part] for part in states(0)))
    for values in noisy.hidden:
        values[MASK == 0] = 1e3
    for values in noisy.scores:
        values.transpose(1, 3)[MASK == 0] = 1e3
        values.transpose(1, 2)[MASK == 0] = 1e3
    for values in noisy.relations:
        values.transpose(1, 2)[MASK == 0] = 1e3
    assert loss(noisy, theirs, MASK).item() == pytest.approx(
        loss(states(0), theirs, MASK).item(), rel=1e-5
    )


@pytest.mark.parametrize("name", STATE_LOSSES)
def test_gradients_of_a_state_loss_are_those_of_finite_differences(name):
    ours, theirs = states(0, dtype=torch.float64), states(1, dtype=torch.float64)
    field = {"hidden": 0, "attention": 1, "relation": 2}[name]
    values = [value.requires_grad_() for value in ours[field]]

    def loss(*given: torch.Tensor) -> torch.Tensor:
        return STATE_LOSSES[name](ours._replace(**{ours._fields[field]: list(given)}), theirs, MASK)

    assert torch.autograd.gradcheck(loss, values)


def test_state_losses_add_up_by_weight():
    ours, theirs = states(0), states(1)
    by_hand = 2 * hidden_loss(ours, theirs, MASK) + 0.5 * relation_loss(ours, theirs, MASK)
    assert state_loss(ours, theirs, MASK, {"hidden": 2.0, "relation": 0.5}).item() == pytest.approx(
        by_hand.item()
    )


def test_the_methods_of_the_command_line_are_those_of_the_losses():
    assert set(SETTINGS["kd_method"][1].metadata["choices"]) == set(KD_LOSSES)
    assert {name for names in KD_LOSSES.values() for name in names} == set(STATE_LOSSES)
    assert all(f"kd_{name}_weight" in SETTINGS for name in STATE_LOSSES)


def test_layers_are_paired_evenly():
    assert (
        layer_map(3, 6) == [1, 3, 5]
        and layer_map(2, 4) == [1, 3]
        and layer_map(4, 4) == [0, 1, 2, 3]
    )
    assert layer_map(1, 6) == [5] and layer_map(4, 2) == [0, 0, 1, 1]


@pytest.mark.parametrize(
    "labels", [torch.tensor([1, NO_LABEL, 0]), torch.tensor([[1.0, 0], [NO_LABEL] * 2, [0, 0]])]
)
def test_a_row_without_a_label_has_the_soft_loss_alone(labels):
    logits, teacher = torch.randn(3, 2, requires_grad=True), torch.randn(3, 2)
    hard_label_loss(logits, labels).backward()
    assert logits.grad[1].tolist() == [0, 0] and logits.grad[0].abs().sum() > 0
    labelled = hard_label_loss(logits[[0, 2]], labels[[0, 2]])
    assert hard_label_loss(logits, labels).item() == pytest.approx(
        2 / 3 * labelled.item()
    )  # as many rows, one of 0
    assert hard_label_loss(logits[1:2], labels[1:2]).item() == 0
    alone = distillation_loss(logits[1:2], labels[1:2], teacher[1:2], 0.7, 2.0)
    assert alone.item() == pytest.approx(
        0.7 * distillation_loss(logits[1:2], labels[:1], teacher[1:2], 1, 2.0).item()
    )


FAMILIES = {
    "bert": {},
    "electra": {"embedding_size": 8},
    "roberta": {"max_position_embeddings": 40},
    "distilbert": {},
    "albert": {"embedding_size": 8},
    "deberta-v2": {},
}


def family_model(family: str, layers: int) -> torch.nn.Module:
    names = {"distilbert": {"dim": 16, "n_layers": layers, "n_heads": 2, "hidden_dim": 32}}.get(
        family,
        {
            "hidden_size": 16,
            "num_hidden_layers": layers,
            "num_attention_heads": 2,
            "intermediate_size": 32,
        },
    )
    config = AutoConfig.for_model(family, vocab_size=50, num_labels=2, **names, **FAMILIES[family])
    return AutoModelForSequenceClassification.from_config(
        config, attn_implementation="eager"
    ).eval()


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"deberta-v2"}))
def test_what_is_watched_is_what_the_model_computes(family):
    torch.manual_seed(0)
    model = family_model(family, 3)
    batch = {
        "input_ids": torch.tensor([[2, 7, 8, 3], [2, 9, 3, 1]]),
        "attention_mask": MASK + (MASK.cumsum(1) == 3),
    }
    batch["attention_mask"] = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    watch = StateRecorder(model)
    for ids in (batch["input_ids"].flip(0), batch["input_ids"]):  # a second pass forgets the first
        outputs = model(
            **batch | {"input_ids": ids}, output_hidden_states=True, output_attentions=True
        )
    found = watch.states(STATE_LOSSES, [0, 1, 2], relation_heads=4)
    for layer in range(3):
        assert torch.allclose(found.hidden[layer], outputs.hidden_states[layer + 1], atol=1e-6)
        scores = found.scores[layer].masked_fill(
            batch["attention_mask"][:, None, None, :] == 0, -1e9
        )
        assert torch.allclose(scores.softmax(-1), outputs.attentions[layer], atol=1e-5)
    assert [tuple(values.shape) for values in found.relations] == [(2, 4, 4, 4)] * 3


@pytest.mark.parametrize("family, known", [(family, family != "deberta-v2") for family in FAMILIES])
def test_whose_queries_are_known_is_known_before_training(family, known, tmp_path):
    family_model(family, 1).save_pretrained(tmp_path)
    assert has_known_queries(str(tmp_path), "--teacher_path") is known


@pytest.fixture(scope="module")
def splits(tiny_csv) -> DatasetDict:
    return load_splits(Options(dataset_path=str(tiny_csv)))[0]


@pytest.fixture(scope="module")
def teacher_dir(splits, tmp_path_factory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("teacher")
    return save_model(*scratch_model("scratch:2x128", TASK, splits["train"][:]["text"], 32), folder)


@pytest.fixture(scope="module")
def soft(teacher_dir, splits, tmp_path_factory) -> DatasetDict:
    folder, found = tmp_path_factory.mktemp("outputs"), {}
    for name in ("train", "validation"):
        (folder / name).mkdir()
        write_teacher_outputs(
            teacher_dir, splits[name], folder / name, select(SETTINGS, COMPUTE_OPTIONS)
        )
        found[name] = with_teacher_logits(splits[name], folder / name)
    return DatasetDict(found)


SETTINGS = replace(
    Options(),
    device="cpu",
    precision="fp32",
    lr=1e-3,
    max_length=32,
    epochs=2,
    student_path="scratch:1x64",
    student_tokenizer="teacher",
)


def test_a_student_equal_to_its_teacher_has_no_loss_of_states(teacher_dir, splits):
    student = AutoModelForSequenceClassification.from_pretrained(teacher_dir).eval()
    loss = live_teacher_loss(student, teacher_dir, dict.fromkeys(STATE_LOSSES, 1.0), "cpu")
    batch = {
        "input_ids": torch.tensor([[2, 7, 8, 3]]),
        "attention_mask": torch.ones(1, 4, dtype=torch.long),
    }
    student(**batch)
    assert loss(batch).item() == pytest.approx(0, abs=1e-6) and not hasattr(student, "kd_project")


@pytest.mark.parametrize("method", ["hidden", "relation"])
def test_a_narrower_student_learns_the_teachers_states(method, teacher_dir, soft, tmp_path):
    options = replace(SETTINGS, kd_method=method)
    folder = distill(teacher_dir, soft, TASK, tmp_path / "student", options)
    weights = load_file(folder / "model.safetensors")
    assert not [name for name in weights if "kd_project" in name]
    ours, theirs = (
        json.loads((path / "tokenizer.json").read_text())["model"] for path in (folder, teacher_dir)
    )
    assert ours == theirs
    history = json.loads(
        next((folder / "checkpoints").glob("checkpoint-*/trainer_state.json")).read_text()
    )
    assert [entry["loss"] for entry in history["log_history"] if "loss" in entry]


def test_every_level_at_once_from_the_teachers_own_layers(teacher_dir, soft, tmp_path):
    options = replace(
        SETTINGS,
        student_path="teacher:1",
        student_tokenizer="own",
        kd_method="multi_level",
        kd_hidden_weight=3.0,
    )
    assert (
        distill(teacher_dir, soft, TASK, tmp_path / "student", options) / "model.safetensors"
    ).is_file()


def test_a_killed_distillation_of_states_goes_on_to_the_same_weights(
    teacher_dir, soft, tmp_path, monkeypatch
):
    class Kill(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 6:
                raise KeyboardInterrupt

    options = replace(SETTINGS, kd_method="hidden", epochs=3)
    whole = distill(teacher_dir, soft, TASK, tmp_path / "whole", options)
    plain = distillation.train_
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(
            distillation,
            "train_",
            lambda *args, **kwargs: plain(*args, **kwargs, callbacks=(Kill(),)),
        )
        distill(teacher_dir, soft, TASK, tmp_path / "killed", options)
    killed = distill(teacher_dir, soft, TASK, tmp_path / "killed", options)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (whole, killed))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_texts_without_labels_leave_out_what_is_held_out_or_known(splits, tmp_path, caplog):
    held, known = splits["test"][0]["text"], splits["train"][0]["text"]
    lines = [
        "a new text",
        f"  {held}",
        known,
        "",
        "another",
        "a  new\u200d text",
        splits["validation"][0]["text"],
    ]
    (tmp_path / "more.txt").write_text("\n".join(lines), encoding="utf-8")
    with caplog.at_level("INFO", "data"):
        rows = write_unlabeled(
            str(tmp_path / "more.txt"), "Comments", splits, tmp_path / "out.arrow"
        )
    assert rows["text"][:] == ["a new text", "another"] and rows["id"][:] == [0, 4]
    assert rows["label"][:] == [NO_LABEL, NO_LABEL]
    assert (
        "7 texts, 5 left out: 2 stand in validation or test, 2 stood before, 1 are empty"
        in caplog.text
    )


def test_variants_are_made_of_training_words_alone_and_repeat_with_the_seed():
    texts = [f"one{i} two{i} three{i} four{i}" for i in range(200)]
    first = list(augment(texts, 2, seed=1))
    assert first == list(augment(texts, 2, seed=1)) != list(augment(texts, 2, seed=2))
    assert 390 <= len(first) <= 400 and not {"", *texts} >= set(first)
    assert {word for text in first for word in text.split()} <= {
        word for text in texts for word in text.split()
    }
    own = [set(text.split()) for text in texts]
    kept = (
        sum(
            len(set(variant.split()) & own[i % 200])
            for i, variant in enumerate(augment(texts, 1, seed=3))
        )
        / 800
    )
    assert (
        0.55 < kept < 0.75
    )  # 0.9 * 0.85 of the words, and of three texts in ten only a part of them
    assert list(augment(["", "  "], 3, seed=1)) == []


def test_variants_that_stand_in_the_held_out_splits_are_left_out(splits, tmp_path):
    short = splits["train"].select(range(40)).map(lambda row: {"text": row["text"].split()[0]})
    held = splits["test"].map(lambda row: {"text": "the"})
    some = DatasetDict(train=short, validation=splits["validation"], test=held)
    rows = write_unlabeled(None, "Comments", some, tmp_path / "out.arrow", augment=3, seed=1)
    texts = rows["text"][:]
    assert texts and "the" not in texts and not set(texts) & set(short["text"][:])
    assert set(rows["label"][:]) == {NO_LABEL}


def test_a_student_learns_on_variants_with_the_teachers_logits(run_main, tiny_csv, tmp_path):
    argv = [
        "--dataset_path",
        str(tiny_csv),
        "--output_dir",
        str(tmp_path),
        "--experiment",
        "run",
        "--pipeline",
        "kd_only",
        "--teacher_path",
        "scratch:1x64",
        "--student_path",
        "teacher:1",
        "--teacher_epochs",
        "1",
        "--epochs",
        "1",
        "--max_length",
        "32",
        "--augment",
        "2",
    ]
    assert run_main(argv) == 0
    outputs = tmp_path / "models" / "run" / "outputs"
    assert sorted(path.name for path in outputs.iterdir()) == ["train", "unlabeled", "validation"]


@pytest.mark.parametrize(
    "name, content, reason",
    [
        ("x.csv", "a,b\n1,2\n", "has no column Comments; it has a, b"),
        ("x.txt", "\n\n", "holds no text that is new"),
    ],
)
def test_texts_that_cannot_be_used_are_refused(name, content, reason, splits, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=reason):
        write_unlabeled(str(tmp_path / name), "Comments", splits, tmp_path / "out.arrow")


def test_class_weights_ignore_rows_without_a_label(splits):
    options = replace(SETTINGS, class_weights="balanced")
    weights = class_weights(splits, TASK, options)
    blank = splits["train"].map(lambda row: {"label": NO_LABEL})
    both = DatasetDict(splits | {"train": concatenate_datasets([splits["train"], blank])})
    assert torch.equal(class_weights(both, TASK, options), weights)


def test_weights_are_calibrated_on_labelled_texts_alone(teacher_dir, soft, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        pruning, "calibration_texts", lambda split, *_: seen.extend(split["label"][:]) or ["a text"]
    )
    blank = soft["train"].map(lambda row: {"label": NO_LABEL})
    both = DatasetDict(soft | {"train": concatenate_datasets([soft["train"], blank])})
    pruning.prune(
        teacher_dir,
        both,
        TASK,
        tmp_path,
        replace(SETTINGS, fine_tune_epochs=0),
    )
    assert seen == soft["train"]["label"][:]


def test_a_bad_file_of_texts_does_not_take_the_experiments_name(
    run_main, tiny_csv, tmp_path, capsys
):
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    (tmp_path / "good.txt").write_text("a new text")
    argv = [
        "--dataset_path",
        str(tiny_csv),
        "--output_dir",
        str(tmp_path),
        "--experiment",
        "run",
        "--pipeline",
        "kd_only",
        "--teacher_path",
        "scratch:1x64",
        "--student_path",
        "teacher:1",
        "--teacher_epochs",
        "1",
        "--epochs",
        "1",
        "--max_length",
        "32",
        "--unlabeled_path",
    ]
    assert run_main([*argv, str(tmp_path / "bad.csv")]) == 2
    assert "--unlabeled_path is" in capsys.readouterr().err.splitlines()[-1]
    assert run_main([*argv, str(tmp_path / "good.txt")]) == 0


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_run_learns_from_texts_without_labels(
    multi_label, run_main, tiny_csv, tiny_multilabel_csv, tmp_path
):
    texts = [f"{FILLER[i % 14]} {NASTY[i % 5]} {i} new" for i in range(100)]
    (tmp_path / "more.jsonl").write_text(
        "\n".join(json.dumps({"Comments": text}) for text in texts)
    )
    argv = [
        "--dataset_path",
        str(tiny_multilabel_csv if multi_label else tiny_csv),
        "--output_dir",
        str(tmp_path),
        "--experiment",
        "run",
        "--teacher_path",
        "scratch:1x64",
        "--student_path",
        "scratch:1x64",
        "--student_tokenizer",
        "teacher",
        "--kd_method",
        "multi_level",
        "--teacher_epochs",
        "1",
        "--epochs",
        "1",
        "--fine_tune_epochs",
        "1",
        "--max_length",
        "32",
        "--unlabeled_path",
        str(tmp_path / "more.jsonl"),
    ]
    assert run_main(argv) == 0
    outputs = tmp_path / "models" / "run" / "outputs"
    assert sorted(path.name for path in outputs.iterdir()) == ["train", "unlabeled", "validation"]
    assert sorted(path.name for path in (outputs / "train").iterdir()) == [
        "logits-0.arrow",
        "stage.json",
    ]
    before = (outputs / "unlabeled" / "logits-0.arrow").stat().st_mtime_ns
    (tmp_path / "more.jsonl").write_text(json.dumps({"Comments": "another"}))
    assert run_main([*argv, "--overwrite"]) == 0  # other texts: the student is made again
    assert (outputs / "unlabeled" / "logits-0.arrow").stat().st_mtime_ns != before
    rows = json.loads((tmp_path / "compressed_models" / "run" / "results_final.json").read_text())[
        "rows"
    ]
    assert {row["stage"]: row["remembered"] for row in rows} == {
        "linear": True,
        "teacher": True,
        "student": False,
        "pruned": False,
        "fp16": False,
    }
