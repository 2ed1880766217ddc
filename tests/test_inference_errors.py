"""Options and files that `inference.py` rejects: in one line, before a model is loaded for a file
and before anything is written."""

from pathlib import Path

import pytest
from served_models import build_two_class_model

import inference
from engines.classifier import load
from inference import main


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """Two classes; torch and ONNX."""
    return build_two_class_model(tmp_path_factory.mktemp("model"), every_format=False)


ERRORS = [
    ("", "--model is required: the directory of a finished model"),
    ("--model nowhere a", "--model is nowhere, but there is no such directory"),
    ("--model . a", "--model is ., but must have model.safetensors, onnx/*.onnx or openvino/*.xml"),
    ("--model MODEL", "no texts are given; give texts to label, or --input FILE"),
    ("--model MODEL a --overwrite", "--overwrite is given, but needs --input"),
    ("--model MODEL a --scores", "--scores is given, but needs --input"),
    ("--model MODEL a --batch 8", "--batch is given, but needs --input"),
    ("--model MODEL a --input in.csv", "texts and --input cannot be combined"),
    (
        "--model MODEL a --engine tensorrt",
        "--engine is tensorrt, but must be auto or one of: torch",
    ),
    (
        "--model MODEL a --engine onnx/../config.json",
        "--engine is onnx/../config.json, but must be auto or one of",
    ),
    ("--model MODEL a --threads 0", "--threads is 0, but must be a whole number of at least 1"),
    (
        "--model MODEL --input in.csv --batch x",
        "--batch is x, but must be a whole number of at least 1",
    ),
    ("--model MODEL --input no.csv", "--input is no.csv, but there is no such file"),
    ("--model MODEL --input empty.csv", "--input is empty.csv, but that file is empty"),
    (
        "--model MODEL --input in.dat",
        "--input is in.dat, but its name must end in .csv or .tsv or .txt or .jsonl or .ndjson or",
    ),
    (
        "--model MODEL --input in.csv --format xml",
        "--format is xml, but must be one of csv, tsv, txt, jsonl, parquet",
    ),
    (
        "--model MODEL --input - --format parquet",
        "--input is - and Parquet, but stdin or a pipe must be plain text",
    ),
    (
        "--model MODEL --input - --format jsonl --output new.csv",
        "--output is new.csv, but must end in .jsonl: the columns of JSON Lines on stdin or",
    ),
    (
        "--model MODEL --input in.csv --output out.csv",
        "--output is out.csv, but that file exists; --overwrite",
    ),
    (
        "--model MODEL --input in.csv --output in.csv --overwrite",
        "--output is in.csv, but must not be the input",
    ),
    (
        "--model nowhere --input in.csv --output new.xlsx",
        "--output is new.xlsx, but must end in .csv, .tsv, .jsonl, .ndjson, .parquet, the text",
    ),
    (
        "--model MODEL --input in.csv --output new.parquet.gz",
        "--output is new.parquet.gz, but must end in .csv, .tsv, .jsonl, .ndjson, .parquet",
    ),
    (
        "--model MODEL --input in.csv --output no/out.csv",
        "--output is no/out.csv, but no is not a writable directory",
    ),
    (
        "--model MODEL --input in.csv --output new.csv --text_column c",
        "--text_column is c, but must be one of the columns: a, text",
    ),
    (
        "--model MODEL --input two.csv --output new.csv",
        "--text_column is not given, but must name one of the columns: a, b",
    ),
    (
        "--model MODEL --input twice.csv --output new.csv --text_column a",
        "--input is twice.csv, but its header names a more than once",
    ),
    (
        "--model MODEL --input damaged.csv --output new.csv",
        "--input is damaged.csv, but it is not text: a NUL byte at offset 5",
    ),
    (
        "--model MODEL --input in.dat --format jsonl --output new.jsonl",
        "--input is in.dat, but must have JSON objects with keys",
    ),
    (
        "--model MODEL --input in.dat --format txt --text_column a",
        "--text_column is a, but must not be given for txt",
    ),
    ("--model MODEL --what a", "unrecognized arguments: --what"),
]


@pytest.mark.parametrize(
    ("command", "line"), ERRORS, ids=[command or "nothing" for command, _ in ERRORS]
)
def test_an_error_is_reported_in_one_line_before_anything_is_written(
    model, tmp_path, monkeypatch, capsys, command, line
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(inference, "load", lambda *_: pytest.fail("the model was loaded"))
    if "--input" not in command:
        monkeypatch.setattr(inference, "load", load)
    files = {
        "in.csv": "a,text\n1,x\n",
        "two.csv": "a,b\n1,x\n",
        "in.dat": "x\n",
        "twice.csv": "a,a\n1,x\n",
        "out.csv": "kept",
        "empty.csv": "",
        "damaged.csv": "text\n\0\n",
    }
    for name, content in files.items():
        Path(name).write_text(content)
    assert main([str(model) if word == "MODEL" else word for word in command.split()]) == 2
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    assert lines[0].startswith(f"inference.py: error: {line}") and printed.out == ""
    assert len(lines) == (2 if not command else 1)
    assert {path.name for path in tmp_path.iterdir()} == set(files)
