"""Several pipelines in one table: the final forms of experiments that share their stages and one benchmark.

What the pipelines are compared with stands above them, as the pipeline `reference`.
"""

from __future__ import annotations

import logging
from typing import Any

from benchmark import machine_description
from compression_config import as_record
from experiments.experiment import Experiment, prefix_pipelines, safe_stem
from experiments.stages import REFERENCES
from reporting import results, run_page
from runtime.artifacts import atomic_directory, library_versions
from runtime.files import json_digest

log = logging.getLogger(__name__)

Rows = list[dict[str, Any]]


def ablation_rows(experiments: list[Experiment], results: list[Rows]) -> Rows:
    """The rows of every pipeline's final forms as its experiment has them, with `pipeline` and `experiment`; first, as
    pipeline `reference`, the references and the teacher, where no pipeline ends in it."""
    finals, references = [], {}
    for experiment, rows in zip(experiments, results, strict=True):
        about = {
            "pipeline": experiment.options.pipeline,
            "experiment": experiment.options.experiment,
        }
        ends = {form.name for form in experiment.chains[0].final_forms()}
        finals += [about | row for row in rows if row["stage"] in ends]
        for row in rows:
            if row["stage"] in (*REFERENCES, "teacher"):
                references.setdefault(
                    (row["stage"], row.get("repeat")), about | {"pipeline": "reference"} | row
                )
    ends = {row["stage"] for row in finals}
    return [row for row in references.values() if row["stage"] not in ends] + finals


def common_options(experiments: list[Experiment]) -> dict[str, Any]:
    """The options that all experiments have in common."""
    first, *others = [as_record(experiment.options) for experiment in experiments]
    return {
        name: value
        for name, value in first.items()
        if all(other[name] == value for other in others)
    }


def write_ablation(experiments: list[Experiment], results: list[Rows]) -> Rows:
    """Write the rows of all pipelines into `compressed_models/ablation_<data set>_<six digits>/`; the rows."""
    names, rows = (
        [one.options.experiment for one in experiments],
        ablation_rows(experiments, results),
    )
    dataset = safe_stem(experiments[0].options.dataset_path)
    directory = experiments[0].artifact.with_name(f"ablation_{dataset}_{json_digest(names)[:6]}")
    about = {
        "ablation": directory.name,
        "experiments": names,
        "machine": machine_description(),
        "versions": library_versions(),
    }
    with atomic_directory(directory, "new") as partial:
        results.write_results(partial, rows, common_options(experiments), about, results.ABLATION)
        run_page.write_comparison(
            [str(one.artifact) for one in experiments], partial / run_page.PAGE_NAME
        )
    log.info("the table of all pipelines is in %s", directory)
    return rows


def rejection_lines(experiments: list[Experiment]) -> list[str]:
    """A line for each form that the quality gate does not let through; it names the pipeline where there are
    several."""
    stopped = [
        results.rejection_notes(one.shipped_rows, one.options.max_f1_drop) for one in experiments
    ]
    return prefix_pipelines(experiments, stopped)
