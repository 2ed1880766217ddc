"""TODO."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from compression_config import UserError
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
from task import decide, probabilities

WINDOW_ROWS, WINDOW_BYTES = 4096, 2**24  # a window ends at whichever comes first

BATCH_TOKENS = 4096  # of a batch, padding included


class Scores(NamedTuple):
    """What a model says of some texts."""

    labels: list[list[str]]  # of each text those that hold: one, or any number where labels overlap
    probabilities: np.ndarray  # [texts, labels]
    tokenize_s: float


@dataclass(frozen=True)
class Classifier:
    """A loaded form and the names of its labels; called with texts it gives `label` and `scores` of each."""

    engine: Engine
    labels: tuple[str, ...]
    multi_label: bool
    form: str = ""
    threads: int = 1
    fingerprint: str = ""  # changes with any file that the form is read from

    def __call__(self, texts: list[str]) -> list[dict[str, Any]]:
        """One `{"label": "1", "scores": {"0": 0.1, "1": 0.9}}` a text; `label` is a list where labels overlap."""
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise TypeError("texts must be a list of strings")
        answers = []
        for start in range(0, len(texts), WINDOW_ROWS):
            scores = self.score(texts[start : start + WINDOW_ROWS])
            for held, row in zip(scores.labels, scores.probabilities.tolist(), strict=True):
                label = held if self.multi_label else held[0]
                answers.append({"label": label, "scores": dict(zip(self.labels, row, strict=True))})
        return answers

    def score(self, texts: list[str], batch: int = 32) -> Scores:
        """Labels and probabilities in the order of `texts`, computed in batches of similar length."""
        start = time.perf_counter()
        tokens = self.engine.tokenize(texts)
        tokenize_s = time.perf_counter() - start
        batches = token_batches([len(row) for row in tokens], batch)
        found = [
            self.engine.forward(self.engine.collate([tokens[row] for row in rows]))
            for rows in batches
        ]
        logits = np.concatenate(found)[np.argsort(np.concatenate(batches))]
        chosen = decide(logits, self.multi_label)
        labels = [
            [name for name, holds in zip(self.labels, row, strict=True) if holds]
            if self.multi_label
            else [self.labels[row]]
            for row in chosen
        ]
        return Scores(labels, probabilities(logits, self.multi_label), tokenize_s)


def token_batches(lengths: Sequence[int], most_rows: int) -> list[list[int]]:
    """Row numbers, the longest rows first, in batches of at most BATCH_TOKENS padded tokens and `most_rows` rows."""
    order, batches, start = sorted(range(len(lengths)), key=lambda row: -lengths[row]), [], 0
    while start < len(order):
        rows = max(1, min(most_rows, BATCH_TOKENS // max(1, lengths[order[start]])))
        batches.append(order[start : start + rows])
        start += rows
    return batches


PICKLE_PATTERNS = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.joblib")

DEFAULT_MAX_TOKENS = 512  # read of a text where the tokenizer sets no limit


def read_json_object(path: Path) -> dict:
    """A JSON object; UserError where the file is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise UserError(f"--model is {path.parent}, but must hold {path.name} as a JSON object")
    return found


def read_labels(model_dir: Path) -> tuple[tuple[str, ...], bool]:
    """The labels in the order of the logits, and whether several may hold at once."""
    config = read_json_object(model_dir / "config.json")
    names, multi_label = (
        config.get("id2label") or {},
        config.get("problem_type") == "multi_label_classification",
    )
    labels = tuple(str(names.get(str(i))) for i in range(len(names)))
    classifies = config.get("problem_type") != "regression" and len(labels) >= (
        1 if multi_label else 2
    )
    if not classifies or len(set(labels)) < len(labels):
        raise UserError(
            f"--model is {model_dir}, but its config.json must name two labels or more in id2label, each "
            "once"
        )
    return labels, multi_label


def read_stage_record(model_dir: Path) -> dict[str, Any]:
    """What stage.json tells of a model; nothing where there is none."""
    path = model_dir / "stage.json"
    return read_json_object(path) if path.exists() else {}


def servable_formats(model_dir: Path, engine: str) -> list[str]:
    """The forms of a directory that `engine` means and whose packages are installed; UserError where there is none."""
    if not model_dir.is_dir():
        raise UserError(f"--model is {model_dir}, but there is no such directory")
    held = [form for form in formats_in(model_dir) if form != "linear"]
    pickles = sorted(path.name for pattern in PICKLE_PATTERNS for path in model_dir.glob(pattern))
    if not held and pickles:
        what = (
            "the linear reference, which is there for comparison; joblib.load reads it"
            if pickles[0] == "linear.joblib"
            else "a pickle, and loading a pickle runs the code in it; save the model as safetensors"
        )
        raise UserError(f"--model is {model_dir}, but holds only {pickles[0]}, {what}")
    if not held:
        raise UserError(
            f"--model is {model_dir}, but must hold model.safetensors, onnx/*.onnx or openvino/*.xml"
        )
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        read_json_object(model_dir / name)
    meant = [form for form in held if engine in ("auto", form, engine_name(form))]
    if not meant:
        known = dict.fromkeys([*map(engine_name, held), *held])
        raise UserError(
            f"--engine is {engine}, but must be auto or what the model has: {', '.join(known)}"
        )
    missing = {
        form: [name for name in ENGINE_PACKAGES[engine_name(form)] if find_spec(name) is None]
        for form in meant
    }
    if all(missing.values()):
        names = " ".join(missing[meant[0]])
        raise UserError(
            f"--engine is {engine}, but must have what serves {meant[0]}: pip install {names}"
        )
    return [form for form in meant if not missing[form]]


def check_unchanged(model_dir: Path, form: str) -> str:
    """A digest of the files that serve a form; UserError where one is not what stage.json says."""
    found, record = {}, read_stage_record(model_dir)
    for path in serving_files(model_dir, form):
        name = path.relative_to(model_dir).as_posix()
        if not path.is_file():
            raise UserError(f"--model is {model_dir}, but {form} needs {name}, which is not there")
        with path.open("rb") as file:
            found[name] = hashlib.file_digest(file, "sha256").hexdigest()
        if record and record.get("files", {}).get(name) != found[name]:
            raise UserError(
                f"--model is {model_dir}, but {name} was changed since the model was made: its hash is not "
                "the one in stage.json"
            )
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]


def load_format(model_dir: Path, form: str, threads: int) -> Classifier:
    """One form, from files that are unchanged, that has answered a text; Unservable where it does not."""
    (labels, multi_label), fingerprint = read_labels(model_dir), check_unchanged(model_dir, form)
    if form == "torch" and (model_dir / "adapter_config.json").exists():
        raise UserError(
            f"--model is {model_dir}, but must not hold adapter_config.json: adapters may be pickles"
        )
    try:
        engine = load_engine(
            model_dir, form, max_input_tokens(model_dir) or DEFAULT_MAX_TOKENS, threads
        )
        answered = engine.forward(engine.encode(list(TIMING_TEXTS[:1]))).shape
    except Exception as error:  # each engine has its own kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UnservableFormat(f"--engine is {form}, but that does not load: {reason}") from error
    if answered != (1, len(labels)):
        raise UnservableFormat(
            f"--engine is {form}, but that gives {answered[-1]} logits for {len(labels)} labels"
        )
    return Classifier(engine, labels, multi_label, form, threads, fingerprint)


def load(model_dir: Path | str, engine: str = "auto", threads: int | None = None) -> Classifier:
    """A form of `model_dir`, to be called with texts. `engine` is `auto`, `torch`, `onnx`, `openvino` or the path of
    a graph; the fastest of the forms that it means is taken, with `threads`, or one or all cores."""
    model_dir = Path(model_dir)
    forms = servable_formats(model_dir, engine)
    counts = [threads] if threads else sorted({1, available_cores()})
    candidates = [(form, number) for form in forms for number in counts]
    form, threads = choose_fastest(
        model_dir,
        candidates,
        read_stage_record(model_dir).get("files", {}),
        lambda *candidate: load_format(model_dir, *candidate).engine,
    )
    return load_format(model_dir, form, threads)
