"""Macro-F1 of predictions against others on the same rows, in pairs.

`python scripts/compare_predictions.py --of A.parquet [..] --against B.parquet [..]`, as many of one as of the other: a
pair for each repeat, files as they lie in `models/<name>/predictions/`. Prints each difference in points with its 95 %
paired bootstrap interval, and the mean over repeats with Nadeau and Bengio's.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from evaluation import decide
from metrics import interval_of_mean, macro_f1, paired_bootstrap


def read(path: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, labels and decisions of the rows."""
    rows = pd.read_parquet(path)
    labels = np.stack(rows["label"])
    return rows["id"].to_numpy(), labels, decide(np.stack(rows["logits"]), labels.ndim == 2)


def difference(path: str, other: str) -> float:
    """Print one pair; its difference as a fraction."""
    (ids, labels, decisions), (other_ids, _, reference) = read(path), read(other)
    if not np.array_equal(ids, other_ids):
        raise SystemExit(f"{path} and {other} hold other rows")
    count = labels.shape[1] if labels.ndim == 2 else int(labels.max()) + 1
    found = paired_bootstrap(labels, decisions, reference, count, seed=0)
    low, high = (100 * found[f"delta_macro_f1_{end}"] for end in ("low", "high"))
    print(
        f"{macro_f1(labels, decisions):.4f} against {macro_f1(labels, reference):.4f}: "
        f"{100 * found['delta_macro_f1']:+.2f} points [{low:+.2f}, {high:+.2f}]"
    )
    return found["delta_macro_f1"]


def main() -> None:
    """Compare every pair."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--of", nargs="+", required=True, metavar="PARQUET", help="predictions")
    parser.add_argument(
        "--against", nargs="+", required=True, metavar="PARQUET", help="what they are compared with"
    )
    parser.add_argument(
        "--test_share",
        type=float,
        default=0.2 / 0.7,
        help="test rows / training rows (default: 2/7)",
    )
    options = parser.parse_args()
    found = [difference(*pair) for pair in zip(options.of, options.against, strict=True)]
    mean, _, low, high = interval_of_mean(found, options.test_share)
    if low is not None:
        print(
            f"mean of {len(found)}: {100 * mean:+.2f} points [{100 * low:+.2f}, {100 * high:+.2f}]"
        )


if __name__ == "__main__":
    main()
