"""The audit finds what is wrong with a file, counts it, and says what is done about it."""

import json

import numpy as np
import pandas as pd
import pytest

from compression_config import Options
from corpus.audit import audit_corpus, audit_table, change_point, token_counts
from corpus.columns import read_corpus
from data import drop_unusable_rows, split_corpus
from encoders.scratch import train_wordpiece


def audited(tmp_path, texts: list[str], labels: list[int], **columns) -> dict:
    path = tmp_path / "file.csv"
    pd.DataFrame({"text": texts, "label": labels, **columns}).to_csv(path, index=False)
    options = Options(dataset_path=str(path), text_column="text", label_columns=("label",))
    labelled = read_corpus(options)
    return audit_corpus(labelled, split_corpus(drop_unusable_rows(labelled), options), {}, 128)


def plain(count: int) -> tuple[list[str], list[int]]:
    rng = np.random.default_rng(0)
    return [f"comment number {i}" for i in range(count)], rng.integers(0, 2, count).tolist()


def test_copies_are_counted_by_letter_by_key_and_without_case_and_marks(tmp_path):
    texts, labels = plain(100)
    texts += ["comment number 0", " comment  number 1\u200b", "Comment, number 2!"]
    found = audited(tmp_path, texts, labels + labels[:3])
    assert found["copies"] == {"exact": 1, "normalized": 2, "near": 3} and found["rows"] == 103


def test_contradictions_and_incomplete_rows_are_counted(tmp_path):
    texts, labels = plain(100)
    found = audited(
        tmp_path,
        [*texts, "comment number 0", "comment  number 0", " "],
        [*labels, 1 - labels[0], 0, 1],
    )
    assert found["contradictions"] == {"texts": 1, "rows": 3} and found["incomplete"] == 1


def test_characters_that_do_not_show_are_counted(tmp_path):
    texts, labels = plain(100)
    texts[:5] = ["a\u00a0b\u00a0c", "\u200eleft", "new\nline", "e\u0301", " edge"]
    found = audited(tmp_path, texts, labels)["characters"]
    assert found["no_break_space"] == {"rows": 1, "characters": 2}
    assert found["left_to_right_mark"] == {"rows": 1, "characters": 1}
    assert found["newline"] == {"rows": 1, "characters": 1} and found["zero_width"] == {
        "rows": 0,
        "characters": 0,
    }
    assert found["changed_by_nfc"] == {"rows": 1} and found["edge_blanks"] == {"rows": 1}


def test_nearly_equal_values_of_any_column_are_named(tmp_path):
    texts, labels = plain(90)
    found = audited(tmp_path, texts, labels, gender=["female", "female ", "male"] * 30)
    assert found["near_equal_values"] == {"gender": [["female", "female "]]}
    assert "nearly equal values of gender" in audit_table(found)


def test_a_rate_that_changes_within_the_file_is_found_with_its_place(tmp_path):
    rng = np.random.default_rng(1)
    texts, _ = plain(400)
    labels = [*(rng.random(300) < 0.7).astype(int), *(rng.random(100) < 0.05).astype(int)]
    (drift,) = audited(tmp_path, texts, labels)["order_drift"]
    assert drift["label"] == "1" and abs(drift["last_row"] - 300) <= 3
    assert drift["before"] == pytest.approx(np.mean(labels[: drift["last_row"]]))
    assert drift["after"] == pytest.approx(np.mean(labels[drift["last_row"] :]))


def test_a_shuffled_file_has_no_drift_but_one_in_a_thousand():
    rng = np.random.default_rng(2)
    chances = [change_point((rng.random(500) < 0.4).astype(int))[1] for _ in range(300)]
    assert np.mean(np.array(chances) < 0.05) < 0.09 and min(chances) > 0.0003


def test_a_sorted_file_is_a_drift_at_the_boundary():
    assert change_point(np.repeat([0, 1], [30, 70]))[0] == 30


def test_tokens_are_counted_with_what_is_cut_and_what_is_unknown():
    tokenizer = train_wordpiece(["a b c d"] * 10, 8)
    found = token_counts(["a b", "a b c d a b c d", "a \u0995"], tokenizer, 8)
    assert found["max"] == 10 and found["truncated"] == pytest.approx(1 / 3)  # with [CLS] and [SEP]
    assert found["unknown"] == pytest.approx(1 / 12)


def test_held_out_texts_that_training_nearly_holds_are_counted(tmp_path):
    texts, labels = plain(100)
    split = ["train"] * 60 + ["validation"] * 20 + ["test"] * 20
    texts[80], texts[81] = "comment number 0", "Comment number 1!"
    labels[80] = labels[0]
    found = audited(tmp_path, texts, labels, split=split)
    assert found["leaks"] == {
        "same_text": 1,
        "near_identical_validation": 0,
        "near_identical_test": 1,
    }


def test_audit_alone_prints_its_table_keeps_it_and_trains_nothing(tiny_csv, tmp_path, capsys):
    from main import main

    argv = [
        "--audit",
        "--dataset_path",
        str(tiny_csv),
        "--output_dir",
        str(tmp_path),
        "--experiment",
        "look",
    ]
    assert main(argv) == 0
    printed = capsys.readouterr().out
    assert (
        printed.splitlines()[0].split() == ["rows", "160"]
        and "112 train, 16 validation, 32 test" in printed
    )
    assert "tokens of the teacher" in printed
    assert json.loads((tmp_path / "models" / "look" / "audit.json").read_text())["rows"] == 160
    assert (
        not (tmp_path / "models" / "look" / "teacher").exists()
        and not (tmp_path / "compressed_models").exists()
    )
