"""Compare the macro-F1 of predictions with that of baseline predictions on the same rows.

`python scripts/compare_predictions.py --of A.parquet [...] --against B.parquet [...]`. Both lists
have the same length, one pair per repeat; the files are in `models/<name>/predictions/`. Prints the
difference of each pair in points with its 95 % paired bootstrap interval, and the mean over repeats
with Nadeau and Bengio's interval.
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the project's directory

from metrics import interval_of_mean, macro_f1, paired_bootstrap  # noqa: E402
from task import decide  # noqa: E402


class Predictions(NamedTuple):
    """The rows of one file: ids [rows], labels and decisions [rows] or [rows, labels]."""

    ids: np.ndarray
    labels: np.ndarray
    decisions: np.ndarray

    @property
    def num_labels(self) -> int:
        """The number of labels or classes."""
        if self.labels.ndim == 2:
            return self.labels.shape[1]
        return int(self.labels.max()) + 1


def read_predictions(path: str) -> Predictions:
    """A Parquet file that a run wrote."""
    rows = pd.read_parquet(path)
    labels = np.stack(rows["label"])
    multi_label = labels.ndim == 2
    return Predictions(rows["id"].to_numpy(), labels, decide(np.stack(rows["logits"]), multi_label))


def compare_pair(path: str, baseline_path: str) -> float:
    """Print the comparison of one pair; returns the macro-F1 difference as a fraction."""
    model = read_predictions(path)
    baseline = read_predictions(baseline_path)
    if not np.array_equal(model.ids, baseline.ids):
        raise SystemExit(f"{path} and {baseline_path} have different rows")
    delta = paired_bootstrap(
        model.labels, model.decisions, baseline.decisions, model.num_labels, seed=0
    )
    low = 100 * delta["delta_macro_f1_low"]
    high = 100 * delta["delta_macro_f1_high"]
    print(
        f"{macro_f1(model.labels, model.decisions):.4f} against "
        f"{macro_f1(model.labels, baseline.decisions):.4f}: "
        f"{100 * delta['delta_macro_f1']:+.2f} points [{low:+.2f}, {high:+.2f}]"
    )
    return delta["delta_macro_f1"]


def main(argv: list[str] | None = None) -> None:
    """Compare every pair, then print the mean."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--of", nargs="+", required=True, metavar="PARQUET", help="predictions")
    parser.add_argument(
        "--against", nargs="+", required=True, metavar="PARQUET", help="baseline predictions"
    )
    parser.add_argument(
        "--test_share",
        type=float,
        default=0.2 / 0.7,
        help="test rows / training rows (default: 2/7)",
    )
    options = parser.parse_args(argv)
    if len(options.of) != len(options.against):
        parser.error(
            f"--of has {len(options.of)} files and --against {len(options.against)}, but they must "
            "have the same number"
        )
    deltas = []
    for path, baseline_path in zip(options.of, options.against, strict=True):
        deltas.append(compare_pair(path, baseline_path))
    mean, _, low, high = interval_of_mean(deltas, options.test_share)
    if len(deltas) > 1:
        interval = "" if low is None else f" [{100 * low:+.2f}, {100 * high:+.2f}]"
        print(f"mean of {len(deltas)}: {100 * mean:+.2f} points{interval}")


if __name__ == "__main__":
    main()
