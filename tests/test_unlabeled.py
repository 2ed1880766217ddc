"""Texts without labels: which ones are read or made by augmentation, and a student that learns from
them."""

import json

import pytest
from builders import FILLER, NASTY
from datasets import DatasetDict
from tiny_training import run_arguments

from compression_config import Options
from corpus.unlabeled import augment, write_unlabeled
from data import load_splits
from runtime.errors import UserError
from task import NO_LABEL


@pytest.fixture(scope="module")
def splits(tiny_csv) -> DatasetDict:
    return load_splits(Options(dataset_path=str(tiny_csv)))[0]


def test_unlabeled_texts_exclude_held_out_texts_and_duplicates(splits, tmp_path, caplog):
    lines = [
        "a new text",
        f"  {splits['test'][0]['text']}",
        splits["train"][0]["text"],
        "",
        "another",
        "a  new\u200d text",
        splits["validation"][0]["text"],
    ]
    path = tmp_path / "more.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    with caplog.at_level("INFO"):
        rows = write_unlabeled(str(path), "Comments", splits, tmp_path / "out.arrow")
    assert rows["text"][:] == ["a new text", "another"]
    assert rows["id"][:] == [0, 4]
    assert rows["label"][:] == [NO_LABEL, NO_LABEL]
    assert (
        "7 texts, 5 skipped: 2 of the validation or test split, 2 duplicates, 1 empty"
        in caplog.text
    )


def test_augmented_texts_consist_of_training_words_and_depend_on_the_seed():
    texts = [f"one{i} two{i} three{i} four{i}" for i in range(200)]
    variants = list(augment(texts, 2, seed=1))
    assert variants == list(augment(texts, 2, seed=1)) != list(augment(texts, 2, seed=2))
    assert 390 <= len(variants) <= 400
    assert not {"", *texts} >= set(variants)
    assert set(" ".join(variants).split()) <= set(" ".join(texts).split())
    own_words = 0  # of each text in its variant
    for i, variant in enumerate(augment(texts, 1, seed=3)):
        own_words += len(set(variant.split()) & set(texts[i].split()))
    # 0.9 * 0.85 of the words; three texts in ten keep only their beginning
    assert 0.55 < own_words / 800 < 0.75
    assert list(augment(["", "  "], 3, seed=1)) == []


def test_augmented_texts_exclude_held_out_texts(splits, tmp_path):
    one_word = splits["train"].select(range(40)).map(lambda row: {"text": row["text"].split()[0]})
    test = splits["test"].map(lambda row: {"text": "the"})
    splits = DatasetDict(train=one_word, validation=splits["validation"], test=test)
    rows = write_unlabeled(None, "Comments", splits, tmp_path / "out.arrow", augment=3, seed=1)
    texts = rows["text"][:]
    assert texts and "the" not in texts
    assert not set(texts) & set(one_word["text"][:])
    assert set(rows["label"][:]) == {NO_LABEL}


@pytest.mark.parametrize(
    "name, content, reason",
    [
        ("x.csv", "a,b\n1,2\n", "has no column Comments; it has a, b"),
        ("x.txt", "\n\n", "contains no new text"),
    ],
)
def test_an_unusable_file_of_texts_is_refused(name, content, reason, splits, tmp_path):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(UserError, match=reason):
        write_unlabeled(str(path), "Comments", splits, tmp_path / "out.arrow")


def test_a_student_learns_from_augmented_texts_with_the_logits_of_the_teacher(
    run_main, tiny_csv, tmp_path
):
    options = (
        "--pipeline kd_only --teacher_path scratch:1x64 --student_path teacher:1 "
        "--teacher_epochs 1 --epochs 1 --max_length 32 --augment 2"
    )
    assert run_main(run_arguments(tiny_csv, tmp_path, options)) == 0
    outputs = tmp_path / "models" / "run" / "outputs"
    assert sorted(path.name for path in outputs.iterdir()) == ["train", "unlabeled", "validation"]


def test_a_run_refused_for_its_unlabeled_texts_does_not_reserve_the_experiment_name(
    run_main, tiny_csv, tmp_path, capsys
):
    bad = tmp_path / "bad.csv"
    good = tmp_path / "good.txt"
    bad.write_text("a,b\n1,2\n")
    good.write_text("a new text")
    options = (
        "--pipeline kd_only --teacher_path scratch:1x64 --student_path teacher:1 "
        "--teacher_epochs 1 --epochs 1 --max_length 32"
    )
    arguments = run_arguments(tiny_csv, tmp_path, options)
    assert run_main([*arguments, "--unlabeled_path", str(bad)]) == 2
    assert "--unlabeled_path is" in capsys.readouterr().err.splitlines()[-1]
    assert run_main([*arguments, "--unlabeled_path", str(good)]) == 0


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_run_learns_from_texts_without_labels(
    multi_label, run_main, tiny_csv, tiny_multilabel_csv, tmp_path
):
    unlabeled = tmp_path / "more.jsonl"
    lines = []
    for i in range(100):
        text = f"{FILLER[i % 14]} {NASTY[i % 5]} {i} new"
        lines.append(json.dumps({"Comments": text}))
    unlabeled.write_text("\n".join(lines))
    options = (
        "--teacher_path scratch:1x64 --student_path scratch:1x64 --student_tokenizer teacher "
        "--kd_method multi_level --teacher_epochs 1 --epochs 1 --fine_tune_epochs 1 "
        "--max_length 32"
    )
    csv = tiny_multilabel_csv if multi_label else tiny_csv
    arguments = [*run_arguments(csv, tmp_path, options), "--unlabeled_path", str(unlabeled)]
    assert run_main(arguments) == 0
    outputs = tmp_path / "models" / "run" / "outputs"
    assert sorted(path.name for path in outputs.iterdir()) == ["train", "unlabeled", "validation"]
    train_files = sorted(path.name for path in (outputs / "train").iterdir())
    assert train_files == ["logits-0.arrow", "stage.json"]
    logits = outputs / "unlabeled" / "logits-0.arrow"
    time_before = logits.stat().st_mtime_ns
    unlabeled.write_text(json.dumps({"Comments": "another"}))
    assert run_main([*arguments, "--overwrite"]) == 0
    assert logits.stat().st_mtime_ns != time_before
    results = tmp_path / "compressed_models" / "run" / "results_final.json"
    rows = json.loads(results.read_text())["rows"]
    assert {row["stage"]: row["remembered"] for row in rows} == {
        "linear": True,
        "teacher": True,
        "student": False,
        "pruned": False,
        "fp16": False,
    }
