"""Evaluations of formats: each is made once, in the measuring process, and reused while nothing
has changed."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compression_config import StageOptions, as_record
from engines.engine import ModelFormat
from evaluation import evaluate
from runtime.artifacts import read_record
from runtime.files import (
    delete,
    file_sha256,
    files_named,
    flush_to_disk,
    json_digest,
    make_directory,
    read_json,
    read_state,
    write_json,
)
from task import Task

log = logging.getLogger(__name__)

EVALUATION_VERSION = 5  # increases when the code of evaluation changes its results


def read_evaluation(path: Path) -> dict[str, Any]:
    """The `key` and `metrics` of an evaluation; ValueError if it or its predictions are damaged."""
    entry = read_json(path)
    if not isinstance(entry, dict) or not isinstance(entry.get("metrics"), dict):
        raise ValueError("it is not an evaluation")
    if entry.get("predictions_sha256") != file_sha256(path.with_suffix(".parquet")):
        raise ValueError("its predictions are not those that it was written with")
    return entry


def find_evaluation(
    path: Path, elsewhere: Iterable[Path], key: str
) -> tuple[Path, dict[str, Any]] | None:
    """(file, metrics) of the evaluation with this key: the one at `path`, else the first elsewhere.

    What is damaged is skipped, and what another run replaces in the meantime.
    """
    for place in (path, *elsewhere):
        level = logging.WARNING if place == path else logging.DEBUG
        entry = read_state(place, read_evaluation, level)
        if entry is not None and entry.get("key") == key:
            return place, entry["metrics"]
    return None


def copy_predictions(source: Path, target: Path) -> bool:
    """Copy the predictions of an evaluation; False if another run replaces them in the
    meantime."""
    try:
        shutil.copy2(source.with_suffix(".parquet"), target.with_suffix(".parquet"))
        digest = read_json(source)["predictions_sha256"]
        return file_sha256(target.with_suffix(".parquet")) == digest
    except (OSError, ValueError, KeyError, TypeError):
        return False


@dataclass(frozen=True)
class EvaluationCache:
    """The evaluations in `directory`/predictions; those with the same key under `models` are
    copied."""

    directory: Path
    models: Path
    task: Task
    options: StageOptions
    rows_digest: str  # of the rows that are evaluated
    with_validation: bool  # whether the quality gate needs validation macro-F1
    call: Callable[..., Any]  # runs a function in the measuring process

    def key(self, model_format: ModelFormat) -> str:
        """A digest of everything that determines an evaluation."""
        records = [read_record(model_format.directory), read_record(self.directory / "teacher")]
        models = [[record["fingerprint"], record["files"]] for record in records]
        return json_digest(
            [
                models,
                self.rows_digest,
                model_format.format_name,
                as_record(self.options),
                self.with_validation,
                EVALUATION_VERSION,
            ]
        )

    def evaluate(self, model_format: ModelFormat) -> dict[str, Any]:
        """Quality and size of a format."""
        directory = self.directory / "predictions"
        make_directory(directory)
        path = directory / f"{model_format.name}.json"
        predictions = path.with_suffix(".parquet")
        key = self.key(model_format)
        elsewhere = [
            place
            for place in files_named(self.models, path.name)
            if place.parent.name == directory.name and place != path
        ]
        cached = find_evaluation(path, elsewhere, key)
        if cached:
            log.debug("%s: evaluation reused from %s", model_format.name, cached[0])
        if cached and cached[0] == path:
            return cached[1]
        delete(path)
        delete(predictions)
        if cached and copy_predictions(cached[0], path):
            metrics = cached[1]
        else:
            metrics = self.measure(model_format, predictions)
        flush_to_disk(predictions)
        digest = file_sha256(predictions)
        write_json(path, {"key": key, "metrics": metrics, "predictions_sha256": digest})
        return metrics

    def measure(self, model_format: ModelFormat, predictions_path: Path) -> dict[str, Any]:
        """Evaluate a format in the measuring process, which writes its predictions."""
        splits = self.directory / "splits"
        validation_path = splits / "validation.parquet" if self.with_validation else None
        return self.call(
            evaluate,
            model_format,
            splits / "test.parquet",
            self.task,
            self.options,
            predictions_path.with_name("teacher.parquet"),
            predictions_path,
            validation_path,
        )
