"""Several pipelines in one table: the final formats of experiments that share stages and one
benchmark.

The baselines and the teacher come first, as the pipeline `reference`.
"""

from __future__ import annotations

import logging
from typing import Any

from compression_config import as_record
from experiments.experiment import Experiment, prefix_pipelines, safe_stem
from experiments.plan import Role
from reporting import results
from reporting.run_page import PAGE_NAME, write_comparison
from runtime.artifacts import atomic_directory, library_versions
from runtime.files import json_digest
from runtime.machine import machine_description

log = logging.getLogger(__name__)

Rows = list[dict[str, Any]]


def reference_stages(experiment: Experiment) -> set[str]:
    """The rows that pipelines are compared with: baselines and the teacher."""
    stages = set()
    for step in experiment.runners[0].plan:
        if step.stage.is_compared_only or step.stage.role is Role.TEACHER:
            stages.add(step.stage.row)
    return stages


def ablation_rows(experiments: list[Experiment], results_rows: list[Rows]) -> Rows:
    """The rows of every pipeline's final formats, with the columns `pipeline` and `experiment`.

    The baselines and the teacher come first, unless a pipeline ends with them.
    """
    final: Rows = []
    references: dict[tuple, dict[str, Any]] = {}
    for experiment, rows in zip(experiments, results_rows, strict=True):
        options = experiment.options
        about = {"pipeline": options.pipeline, "experiment": options.experiment}
        final_names = {model_format.name for model_format in experiment.runners[0].final_formats()}
        final += [about | row for row in rows if row["stage"] in final_names]
        stages = reference_stages(experiment)
        for row in rows:
            if row["stage"] in stages:
                key = (row["stage"], row.get("repeat"))
                references.setdefault(key, about | {"pipeline": "reference"} | row)
    final_stages = {row["stage"] for row in final}
    return [row for row in references.values() if row["stage"] not in final_stages] + final


def common_options(experiments: list[Experiment]) -> dict[str, Any]:
    """The options that all experiments have in common."""
    records = [as_record(experiment.options) for experiment in experiments]
    common = {}
    for name, value in records[0].items():
        if all(record[name] == value for record in records):
            common[name] = value
    return common


def write_ablation(experiments: list[Experiment], results_rows: list[Rows]) -> Rows:
    """Write the rows of all pipelines into `compressed_models/ablation_<data set>_<digest>/`;
    returns the rows."""
    names = [experiment.options.experiment for experiment in experiments]
    rows = ablation_rows(experiments, results_rows)
    dataset = safe_stem(experiments[0].options.dataset_path)
    name = f"ablation_{dataset}_{json_digest(names)[:6]}"
    directory = experiments[0].artifact.with_name(name)
    about = {
        "ablation": name,
        "experiments": names,
        "machine": machine_description(),
        "versions": library_versions(),
    }
    with atomic_directory(directory, "new") as partial:
        options = common_options(experiments)
        results.write_results(partial, rows, options, about, results.ABLATION)
        artifacts = [str(experiment.artifact) for experiment in experiments]
        write_comparison(artifacts, partial / PAGE_NAME)
    log.info("the table of all pipelines is in %s", directory)
    return rows


def rejection_lines(experiments: list[Experiment]) -> list[str]:
    """A line for each format that the quality gate rejects, prefixed with the pipeline if there
    are several."""
    lines = []
    for experiment in experiments:
        limit = experiment.options.max_f1_drop
        lines.append(results.rejection_notes(experiment.artifact_rows, limit))
    return prefix_pipelines(experiments, lines)
