"""Evaluations of formats: each is made once, in the measuring process, and reused while nothing
has changed."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compression_config import StageOptions, as_record
from engines.engine import ModelFormat
from evaluation import evaluate
from runtime.artifacts import read_record
from runtime.files import files_named, json_digest, read_json, write_json
from task import Task

log = logging.getLogger(__name__)

EVALUATION_VERSION = 5  # increases when the code of evaluation changes its results


def find_evaluation(paths: Iterable[Path], key: str) -> Path | None:
    """The first of these files with the evaluation of this key, and with its
    predictions in the same directory."""
    for path in paths:
        with suppress(OSError, ValueError):  # another run may be writing the file
            if path.with_suffix(".parquet").is_file() and read_json(path)["key"] == key:
                return path
    return None


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
        predictions = self.directory / "predictions"
        predictions.mkdir(exist_ok=True)
        path = predictions / f"{model_format.name}.json"
        key = self.key(model_format)
        elsewhere = [
            place
            for place in files_named(self.models, path.name)
            if place.parent.name == predictions.name
        ]
        cached = find_evaluation([path, *elsewhere], key)
        if cached == path:
            log.debug("%s: evaluation reused from %s", model_format.name, cached)
            return read_json(path)["metrics"]
        path.unlink(missing_ok=True)
        if cached:
            log.debug("%s: evaluation reused from %s", model_format.name, cached)
            shutil.copy2(cached.with_suffix(".parquet"), path.with_suffix(".parquet"))
            metrics = read_json(cached)["metrics"]
        else:
            metrics = self.measure(model_format, path.with_suffix(".parquet"))
        write_json(path, {"key": key, "metrics": metrics})
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
