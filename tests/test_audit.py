"""The audit counts the problems of a file and reports what is done about them."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from corpora import audit_of, comments, write_corpus

from corpus.audit import audit_lines, audit_table, change_point, token_counts
from encoders.scratch import train_wordpiece


def random_labels(count: int) -> list[int]:
    return np.random.default_rng(0).integers(0, 2, count).tolist()


def audit(tmp_path, texts: list[str], labels: list[int], **columns) -> dict[str, Any]:
    options = write_corpus(tmp_path, text=texts, label=labels, **columns)
    named = dataclasses.replace(options, text_column="text", label_columns=("label",))
    return audit_of(named)


def test_duplicates_are_counted_exactly_by_key_and_ignoring_case_and_punctuation(tmp_path):
    texts = [*comments(100), "comment number 0", " comment  number 1\u200b", "Comment, number 2!"]
    labels = random_labels(100)
    findings = audit(tmp_path, texts, labels + labels[:3])
    assert findings["copies"] == {"exact": 1, "normalized": 2, "near": 3}
    assert findings["rows"] == 103


def test_contradictions_and_incomplete_rows_are_counted(tmp_path):
    texts = [*comments(100), "comment number 0", "comment  number 0", " "]
    labels = random_labels(100)
    findings = audit(tmp_path, texts, [*labels, 1 - labels[0], 0, 1])
    assert findings["contradictions"] == {"texts": 1, "rows": 3}
    assert findings["incomplete"] == 1


def test_invisible_characters_are_counted(tmp_path):
    texts = comments(100)
    texts[:5] = ["a\u00a0b\u00a0c", "\u200eleft", "new\nline", "e\u0301", " edge"]
    characters = audit(tmp_path, texts, random_labels(100))["characters"]
    assert characters["no_break_space"] == {"rows": 1, "characters": 2}
    assert characters["left_to_right_mark"] == {"rows": 1, "characters": 1}
    assert characters["newline"] == {"rows": 1, "characters": 1}
    assert characters["zero_width"] == {"rows": 0, "characters": 0}
    assert characters["changed_by_nfc"] == {"rows": 1}
    assert characters["edge_blanks"] == {"rows": 1}


def test_replacement_characters_and_html_entities_are_counted(tmp_path):
    texts = comments(100)
    texts[:4] = ["caf\ufffd \ufffd", "Q&amp;A &#39;so&#x27;", "AT&T; x & y;", "&nbsp;"]
    findings = audit(tmp_path, texts, random_labels(100))
    assert findings["characters"]["replacement_character"] == {"rows": 1, "characters": 2}
    assert findings["characters"]["html_entities"] == {"rows": 2, "characters": 4}
    table = audit_table(findings)
    assert "HTML entities such as &amp; (4 in total)" in table
    assert "replacement characters U+FFFD, left by a wrong decoding (2 in total)" in table


def test_control_characters_of_names_and_labels_are_escaped(tmp_path):
    labels = ["bad\x1b[31m", "good\u202e"] * 45
    options = write_corpus(tmp_path, text=comments(90), **{"la\x07bel": labels})
    table = audit_table(audit_of(options))
    assert "la\\x07bel" in table and "bad\\x1b[31m 50.0%, good\\u202e 50.0%" in table
    assert all(char.isprintable() or char == "\n" for char in table)


def test_near_equal_values_of_any_column_are_listed(tmp_path):
    genders = ["female", "female ", "male"] * 30
    findings = audit(tmp_path, comments(90), random_labels(90), gender=genders)
    assert findings["near_equal_values"] == {"gender": [["female", "female "]]}
    assert "near-equal values of gender" in audit_table(findings)


@pytest.mark.parametrize("empty_texts", [0, 20])
def test_a_label_rate_that_changes_along_the_file_is_reported_with_its_row(empty_texts, tmp_path):
    """Rows of the file are counted, also those that are dropped."""
    rng = np.random.default_rng(1)
    labels = [*(rng.random(300) < 0.7).astype(int), *(rng.random(100) < 0.05).astype(int)]
    texts = [""] * empty_texts + comments(400)[empty_texts:]
    (drift,) = audit(tmp_path, texts, labels)["order_drift"]
    assert drift["label"] == "1" and abs(drift["last_row"] - 300) <= 3
    before = labels[empty_texts : drift["last_row"]]
    assert drift["before"] == pytest.approx(np.mean(before))
    assert drift["after"] == pytest.approx(np.mean(labels[drift["last_row"] :]))


def test_a_shuffled_file_has_small_p_values_only_as_often_as_expected():
    rng = np.random.default_rng(2)
    p_values = np.array([change_point((rng.random(500) < 0.4).astype(int))[1] for _ in range(300)])
    assert np.mean(p_values < 0.05) < 0.09
    assert p_values.min() > 0.0003


def test_the_change_point_of_a_sorted_file_is_the_class_boundary():
    assert change_point(np.repeat([0, 1], [30, 70]))[0] == 30


def test_truncated_texts_and_unknown_tokens_are_counted():
    tokenizer = train_wordpiece(["a b c d"] * 10, 8)
    counts = token_counts(["a b", "a b c d a b c d", "a \u0995"], tokenizer, 8)
    assert counts["max"] == 10  # with [CLS] and [SEP]
    assert counts["truncated"] == pytest.approx(1 / 3)
    assert counts["unknown"] == pytest.approx(1 / 12)


def test_held_out_texts_with_a_near_duplicate_in_training_are_counted(tmp_path):
    texts = comments(100)
    labels = random_labels(100)
    split = ["train"] * 60 + ["validation"] * 20 + ["test"] * 20
    texts[80] = "comment number 0"
    texts[81] = "Comment number 1!"
    labels[80] = labels[0]
    assert audit(tmp_path, texts, labels, split=split)["leaks"] == {
        "same_text": 1,
        "near_identical_validation": 0,
        "near_identical_test": 1,
    }


def test_a_problem_that_does_not_occur_has_no_line_in_the_table(tmp_path):
    findings = audit(tmp_path, [*comments(90), " "], [*random_labels(90), 0])
    assert audit_lines(findings)[:4] == [
        ("rows", "91", ""),
        ("text column", "text", ""),
        ("label columns", "label", ""),
        ("rows without text or label", "1 (1.1%)", "dropped"),
    ]
    assert "duplicates" not in audit_table(findings)


def test_the_audit_option_prints_the_audit_and_writes_nothing(tiny_csv, tmp_path, capsys):
    from main import main

    argv = ["--audit", "--dataset_path", str(tiny_csv)]
    argv += ["--output_dir", str(tmp_path), "--experiment", "look"]
    assert main(argv) == 0
    printed = capsys.readouterr().out
    assert [line.split() for line in printed.splitlines()[:3]] == [
        ["rows", "160"],
        ["text", "column", "Comments"],
        ["label", "columns", "HateSpeech"],
    ]
    assert "112 train, 16 validation, 32 test" in printed
    assert "tokens per text (teacher)" in printed
    assert list(tmp_path.iterdir()) == []
