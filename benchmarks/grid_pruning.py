"""Wanda and magnitude at several sparsities, with and without recovery: a Markdown table and a plot (matplotlib).

`python scripts/grid_pruning.py PLOT.svg [options of main.py]`, such as `--pipeline kd_prune --seed 1`; it needs `pip
install matplotlib`. Each point is a run of main.py; they share teacher and student. Differences are from the unpruned
model, in points of macro-F1, with their 95 % paired bootstrap interval.
"""

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from evaluation import decide
from main import main as run_main
from metrics import paired_bootstrap
from runtime.command_line import parse_options

METHODS, SPARSITIES, EPOCHS = (
    ("magnitude", "wanda"),
    (0.4, 0.6, 0.8, 0.9),
    {"with": None, "without": "0"},
)
NAME = "grid"  # of the experiment: one folder, so that teacher and student are evaluated once
Point = tuple[float, float, float]  # difference and the ends of its interval


def decisions(predictions: Path, row: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels and decisions of a row of a run."""
    rows = pd.read_parquet(predictions / f"{row}.parquet")
    labels = np.stack(rows["label"])
    return labels, decide(np.stack(rows["logits"]), labels.ndim == 2)


def point(method: str, sparsity: float, epochs: str | None, words: list[str]) -> Point:
    """Run one point of the grid."""
    given = [
        "--prune_method",
        method,
        "--prune_sparsity",
        str(sparsity),
        "--experiment",
        NAME,
        "--overwrite",
    ]
    with redirect_stdout(sys.stderr):
        code = run_main([*words, *given, *(["--fine_tune_epochs", epochs] if epochs else [])])
    if code:
        raise SystemExit(f"{method} at {sparsity:g} ended with {code}")
    parent = Path(parse_options(words).output_dir)
    document = json.loads((parent / "compressed_models" / NAME / "results_final.json").read_text())
    before = next(row["parent"] for row in document["rows"] if row["stage"] == "pruned")
    predictions = parent / "models" / NAME / "predictions"
    (labels, reference), (_, pruned) = (decisions(predictions, row) for row in (before, "pruned"))
    found = paired_bootstrap(labels, pruned, reference, len(document["labels"]), seed=0)
    return tuple(100 * found[f"delta_macro_f1{end}"] for end in ("", "_low", "_high"))


def plot(path: str, points: dict[tuple[str, str, float], Point]) -> None:
    """Differences against sparsity: a panel with recovery and one without, a line for each method."""
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(8, 3.6), layout="constrained")
    for axes, recovery in zip(panels, EPOCHS, strict=True):
        for method in METHODS:
            found = np.array([points[method, recovery, sparsity] for sparsity in SPARSITIES])
            axes.errorbar(
                SPARSITIES,
                found[:, 0],
                np.abs(found[:, 1:] - found[:, :1]).T,
                label=method,
                capsize=3,
            )
        axes.set(xlabel="sparsity", title=f"{recovery} recovery")
        axes.axhline(0, color="gray", linewidth=0.8)
    panels[0].set_ylabel("points of macro-F1 against unpruned")
    panels[0].legend()
    figure.savefig(path)


def main() -> None:
    """Run the grid, print its table, draw it."""
    if len(sys.argv) < 2 or {"--seeds", "--num_folds"} & set(sys.argv):
        raise SystemExit(f"{__doc__}\nA grid is of one seed and one split.")
    path, *words = sys.argv[1:]
    points = {
        (method, recovery, sparsity): point(method, sparsity, epochs, words)
        for recovery, epochs in EPOCHS.items()
        for method in METHODS
        for sparsity in SPARSITIES
    }
    print(f"| method | recovery | {' | '.join(f'{sparsity:.0%}' for sparsity in SPARSITIES)} |")
    print(f"|---|---|{'--:|' * len(SPARSITIES)}")
    for recovery in EPOCHS:
        for method in METHODS:
            found = (points[method, recovery, sparsity] for sparsity in SPARSITIES)
            shown = ("{:+.1f} [{:+.1f}, {:+.1f}]".format(*one) for one in found)
            print(f"| {method} | {recovery} | {' | '.join(shown)} |", flush=True)
    plot(path, points)


if __name__ == "__main__":
    main()
