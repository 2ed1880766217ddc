"""Wanda and magnitude pruning at several sparsities, with and without recovery: a table and a plot.

`python -m benchmarks.grid_pruning PLOT.svg [options of main.py]`, such as `--pipeline kd_prune
--seed 1`. Each point is a run of main.py; the runs share teacher and student. Differences are from
the unpruned model, in points of macro-F1, with their 95 % paired bootstrap intervals. Prints a
Markdown table.
"""

import argparse
import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from main import main as run_main
from metrics import paired_bootstrap
from runtime.command_line import parse_options
from task import decide

METHODS = ("magnitude", "wanda")
SPARSITIES = (0.4, 0.6, 0.8, 0.9)
RECOVERY_OPTIONS = {"with": [], "without": ["--fine_tune_epochs", "0"]}
EXPERIMENT = "grid"  # one name for all runs, so that teacher and student are evaluated once


class Setting(NamedTuple):
    """One run of the grid."""

    method: str
    recovery: str  # a key of RECOVERY_OPTIONS
    sparsity: float


class Difference(NamedTuple):
    """Macro-F1 minus that of the unpruned model, in points, and the bounds of its 95 %
    confidence interval."""

    points: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.points:+.1f} [{self.low:+.1f}, {self.high:+.1f}]"


def read_decisions(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Labels and decisions of a file of predictions."""
    rows = pd.read_parquet(path)
    labels = np.stack(rows["label"])
    multi_label = labels.ndim == 2
    return labels, decide(np.stack(rows["logits"]), multi_label)


def run_setting(setting: Setting, main_options: list[str]) -> Difference:
    """Run main.py and compare the pruned model with its parent."""
    words = ["--prune_method", setting.method, "--prune_sparsity", str(setting.sparsity)]
    words += ["--experiment", EXPERIMENT, "--overwrite", *RECOVERY_OPTIONS[setting.recovery]]
    with redirect_stdout(sys.stderr):
        code = run_main([*main_options, *words])
    if code:
        raise SystemExit(f"{setting.method} at {setting.sparsity:g} ended with exit code {code}")
    output_dir = Path(parse_options(main_options).output_dir)
    results = output_dir / "compressed_models" / EXPERIMENT / "results_final.json"
    document = json.loads(results.read_text(encoding="utf-8"))
    parent = next(row["parent"] for row in document["rows"] if row["stage"] == "pruned")
    predictions = output_dir / "models" / EXPERIMENT / "predictions"
    labels, unpruned = read_decisions(predictions / f"{parent}.parquet")
    _, pruned = read_decisions(predictions / "pruned.parquet")
    delta = paired_bootstrap(labels, pruned, unpruned, len(document["labels"]), seed=0)
    return Difference(
        points=100 * delta["delta_macro_f1"],
        low=100 * delta["delta_macro_f1_low"],
        high=100 * delta["delta_macro_f1_high"],
    )


def plot(path: str, differences: dict[Setting, Difference]) -> None:
    """Differences against sparsity: a panel with recovery and one without, a line per method."""
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(8, 3.6), layout="constrained")
    for axes, recovery in zip(panels, RECOVERY_OPTIONS, strict=True):
        for method in METHODS:
            line = [differences[Setting(method, recovery, sparsity)] for sparsity in SPARSITIES]
            points = [difference.points for difference in line]
            below = [difference.points - difference.low for difference in line]
            above = [difference.high - difference.points for difference in line]
            axes.errorbar(SPARSITIES, points, [below, above], label=method, capsize=3)
        axes.set(xlabel="sparsity", title=f"{recovery} recovery")
        axes.axhline(0, color="gray", linewidth=0.8)
    panels[0].set_ylabel("points of macro-F1 against unpruned")
    panels[0].legend()
    figure.savefig(path)


def markdown(differences: dict[Setting, Difference]) -> str:
    """A row per method and recovery, a column per sparsity."""
    headings = [f"{sparsity:.0%}" for sparsity in SPARSITIES]
    lines = [f"| method | recovery | {' | '.join(headings)} |"]
    lines.append(f"|---|---|{'--:|' * len(SPARSITIES)}")
    for recovery in RECOVERY_OPTIONS:
        for method in METHODS:
            cells = [
                str(differences[Setting(method, recovery, sparsity)]) for sparsity in SPARSITIES
            ]
            lines.append(f"| {method} | {recovery} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    """Run the grid, print its table, and draw the plot."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        epilog="Further options are those of main.py, except --seeds and --num_folds.",
        allow_abbrev=False,
    )
    parser.add_argument("plot", metavar="PLOT", help="file of the plot, such as plot.svg")
    arguments, main_options = parser.parse_known_args(argv)
    for flag in ("--seeds", "--num_folds"):
        if flag in main_options:
            parser.error(f"{flag} is given, but a grid has one seed and one split")
    differences = {}
    for recovery in RECOVERY_OPTIONS:
        for method in METHODS:
            for sparsity in SPARSITIES:
                setting = Setting(method, recovery, sparsity)
                differences[setting] = run_setting(setting, main_options)
    print(markdown(differences))
    plot(arguments.plot, differences)


if __name__ == "__main__":
    main()
