"""A finished model as a classifier: from a directory to labels and scores of texts.

Files that changed since the model was made are rejected, and nothing is unpickled.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from encoders.model_files import UnusableModel, check_own_code
from engines.autoselect import (
    ENGINE_PACKAGES,
    TIMING_TEXTS,
    UnservableFormat,
    available_cores,
    choose_fastest,
)
from engines.engine import (
    Engine,
    engine_name,
    formats_in,
    load_engine,
    max_input_tokens,
    serving_files,
)
from engines.linear import LINEAR_NAME, OLD_LINEAR_NAME
from runtime.errors import UserError, first_line
from runtime.files import file_sha256, json_digest
from runtime.finite import check_logits
from task import decide, probabilities

CALL_TEXTS = 4096  # tokenized at a time by `Classifier.__call__`

BATCH_TOKENS = 4096  # of a batch, padding included

PICKLE_PATTERNS = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.joblib")

DEFAULT_MAX_TOKENS = 512  # read of a text if the tokenizer sets no limit


class Scores(NamedTuple):
    """The predictions for some texts."""

    labels: list[list[str]]  # per text: one label, or any number of a multi-label model
    probabilities: np.ndarray  # [texts, labels]
    tokenize_s: float


@dataclass(frozen=True)
class Classifier:
    """A loaded format and the names of its labels."""

    engine: Engine
    labels: tuple[str, ...]
    multi_label: bool
    format_name: str = ""
    threads: int = 1
    fingerprint: str = ""  # changes with any file that the format is loaded from

    def __call__(self, texts: list[str]) -> list[dict[str, Any]]:
        """For each text, for example `{"label": "1", "scores": {"0": 0.1, "1": 0.9}}`.

        `label` is a list for a multi-label model. TypeError if `texts` is not a list of strings.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise TypeError("texts must be a list of strings")
        answers = []
        for start in range(0, len(texts), CALL_TEXTS):
            scores = self.score(texts[start : start + CALL_TEXTS])
            for labels, row in zip(scores.labels, scores.probabilities.tolist(), strict=True):
                label = labels if self.multi_label else labels[0]
                answers.append({"label": label, "scores": dict(zip(self.labels, row, strict=True))})
        return answers

    def score(self, texts: list[str], batch: int = 32) -> Scores:
        """Labels and probabilities in the order of `texts`, which must not be empty.

        Batches consist of texts of similar length.
        """
        start = time.perf_counter()
        tokens = self.engine.tokenize(texts)
        tokenize_s = time.perf_counter() - start
        batches = token_batches([len(ids) for ids in tokens], batch)
        batch_logits = []
        for rows in batches:
            inputs = self.engine.collate([tokens[row] for row in rows])
            batch_logits.append(self.engine.forward(inputs))
        original_order = np.argsort(np.concatenate(batches))
        logits = np.concatenate(batch_logits)[original_order]
        check_logits(logits, "the model", "serve another format")
        return Scores(self.label_names(logits), probabilities(logits, self.multi_label), tokenize_s)

    def label_names(self, logits: np.ndarray) -> list[list[str]]:
        """The predicted labels of each row of logits [texts, labels]."""
        decisions = decide(logits, self.multi_label)
        if not self.multi_label:
            return [[self.labels[class_id]] for class_id in decisions]
        names = []
        for flags in decisions:
            pairs = zip(self.labels, flags, strict=True)
            names.append([label for label, is_predicted in pairs if is_predicted])
        return names


def token_batches(lengths: Sequence[int], max_rows: int) -> list[list[int]]:
    """Row numbers in batches, the longest rows first.

    A batch has at most BATCH_TOKENS padded tokens and `max_rows` rows, and at least one row.
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    batches = []
    start = 0
    while start < len(order):
        longest = max(1, lengths[order[start]])
        rows = max(1, min(max_rows, BATCH_TOKENS // longest))
        batches.append(order[start : start + rows])
        start += rows
    return batches


def read_json_object(path: Path, flag: str = "--model") -> dict:
    """A JSON object; UserError if the file is not one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        value = None
    if not isinstance(value, dict):
        raise UserError(f"{flag} is {path.parent}, but must have {path.name} with a JSON object")
    return value


def read_labels(model_dir: Path) -> tuple[tuple[str, ...], bool]:
    """The labels in the order of the logits, and whether the model is multi-label."""
    config = read_json_object(model_dir / "config.json")
    names = config.get("id2label")
    if not isinstance(names, dict):
        names = {}
    multi_label = config.get("problem_type") == "multi_label_classification"
    labels = tuple(str(names.get(str(i))) for i in range(len(names)))
    least = 1 if multi_label else 2
    is_numbered = names.keys() == {str(i) for i in range(len(names))}
    is_classifier = (
        is_numbered and config.get("problem_type") != "regression" and len(labels) >= least
    )
    if not is_classifier or len(set(labels)) < len(labels):
        raise UserError(
            f"--model is {model_dir}, but its config.json must name two labels or more in "
            "id2label, each once, with the keys 0, 1, 2, ..."
        )
    return labels, multi_label


def read_stage_record(model_dir: Path, flag: str = "--model") -> dict[str, Any]:
    """The contents of stage.json; empty if there is none."""
    path = model_dir / "stage.json"
    return read_json_object(path, flag) if path.exists() else {}


def check_has_formats(model_dir: Path, format_names: list[str]) -> None:
    """Raise UserError if there is no format besides pickles, such as the linear baseline."""
    if format_names:
        return
    pickles = set()
    for pattern in PICKLE_PATTERNS:
        pickles.update(path.name for path in model_dir.glob(pattern))
    if (model_dir / LINEAR_NAME).is_file():
        raise UserError(
            f"--model is {model_dir}, but has only {LINEAR_NAME}, the linear baseline, which is "
            "there for comparison"
        )
    if not pickles:
        raise UserError(
            f"--model is {model_dir}, but must have model.safetensors, onnx/*.onnx or "
            "openvino/*.xml"
        )
    name = min(pickles)
    explanation = (
        "a pickle, and loading a pickle runs the code in it; save the model as safetensors"
    )
    if name == OLD_LINEAR_NAME:
        explanation = "a pickle of an older version; run main.py again, which stores it as arrays"
    raise UserError(f"--model is {model_dir}, but has only {name}, {explanation}")


def refuse_own_code(flag: str, model_dir: Path) -> None:
    """Raise UserError if the model brings code of its own, before a library reads its files."""
    try:
        check_own_code(model_dir)
    except UnusableModel as error:
        raise UserError(f"{flag} is {model_dir}, but {error}") from None


def missing_packages(format_name: str) -> list[str]:
    """The packages that serving a format needs and that are not installed."""
    needed = ENGINE_PACKAGES[engine_name(format_name)]
    return [name for name in needed if find_spec(name) is None]


def servable_formats(model_dir: Path, engine: str) -> list[str]:
    """The formats of a directory that `engine` selects and whose packages are installed.

    UserError if there is none.
    """
    if not model_dir.is_dir():
        raise UserError(f"--model is {model_dir}, but there is no such directory")
    present = [name for name in formats_in(model_dir) if name != "linear"]
    check_has_formats(model_dir, present)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        read_json_object(model_dir / name)
    refuse_own_code("--model", model_dir)
    selected = [name for name in present if engine in ("auto", name, engine_name(name))]
    if not selected:
        choices = dict.fromkeys([*map(engine_name, present), *present])
        raise UserError(f"--engine is {engine}, but must be auto or one of: {', '.join(choices)}")
    installed = [name for name in selected if not missing_packages(name)]
    if not installed:
        packages = " ".join(missing_packages(selected[0]))
        raise UserError(
            f"--engine is {engine}, but serving {selected[0]} needs more packages: "
            f"pip install {packages}"
        )
    return installed


def check_unchanged(model_dir: Path, format_name: str, flag: str = "--model") -> str:
    """A digest of the files that a format is loaded from; `flag` names the directory in errors.

    UserError if a file is missing, or if its hash differs from the one in stage.json.
    """
    record = read_stage_record(model_dir, flag)
    recorded = record.get("files", {})
    if not isinstance(recorded, dict):
        raise UserError(f"{flag} is {model_dir}, but its stage.json lists no files with hashes")
    hashes = {}
    for path in serving_files(model_dir, format_name):
        name = path.relative_to(model_dir).as_posix()
        if not path.is_file():
            raise UserError(f"{flag} is {model_dir}, but {format_name} needs the file {name}")
        hashes[name] = file_sha256(path)
        if record and recorded.get(name) != hashes[name]:
            raise UserError(
                f"{flag} is {model_dir}, but {name} was changed since the model was made: its "
                "hash is not the one in stage.json"
            )
    return json_digest(hashes)


def load_format(model_dir: Path, format_name: str, threads: int) -> Classifier:
    """Load one format, after checking that its files are unchanged, and label one text as a test.

    UserError if a file changed, UnservableFormat if the format does not load or work.
    """
    labels, multi_label = read_labels(model_dir)
    fingerprint = check_unchanged(model_dir, format_name)
    if format_name == "torch" and (model_dir / "adapter_config.json").exists():
        raise UserError(
            f"--model is {model_dir}, but must not have adapter_config.json: adapters may "
            "be pickles"
        )
    max_length = max_input_tokens(model_dir) or DEFAULT_MAX_TOKENS
    try:
        engine = load_engine(model_dir, format_name, max_length, threads)
        shape = engine.forward(engine.encode(list(TIMING_TEXTS[:1]))).shape
    except Exception as error:  # each engine raises its own types
        raise UnservableFormat(
            f"--engine is {format_name}, but it failed to load: {first_line(error)}"
        ) from error
    if shape != (1, len(labels)):
        raise UnservableFormat(
            f"--engine is {format_name}, but that gives {shape[-1]} logits for {len(labels)} labels"
        )
    return Classifier(engine, labels, multi_label, format_name, threads, fingerprint)


def load(model_dir: Path | str, engine: str = "auto", threads: int | None = None) -> Classifier:
    """Load the fastest format of a model directory, to be called with a list of texts.

    `engine` limits the choice: `auto`, `torch`, `onnx`, `openvino` or the path of a graph such as
    `onnx/model_q4.onnx`. Without `threads`, one thread and all cores are compared.
    """
    model_dir = Path(model_dir)
    thread_counts = [threads] if threads else sorted({1, available_cores()})
    candidates = []
    for format_name in servable_formats(model_dir, engine):
        candidates += [(format_name, count) for count in thread_counts]

    def load_candidate(format_name: str, threads: int) -> Engine:
        return load_format(model_dir, format_name, threads).engine

    hashes = read_stage_record(model_dir).get("files", {})
    format_name, threads = choose_fastest(model_dir, candidates, hashes, load_candidate)
    return load_format(model_dir, format_name, threads)
