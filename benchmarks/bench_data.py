"""Time and memory of reading, auditing and splitting a file of a million rows.

`python -m benchmarks.bench_data [--rows 1000000]`. The baseline is `pandas.read_csv` and one NFC
pass over the texts. Both run in fresh processes, interleaved, three rounds. Prints seconds, peak
memory and the ratio of the seconds; the exit code is 1 if the median ratio is above 2 or the peak
above 2 GiB. Then the same texts are processed as `--unlabeled_path` processes them, from the file
to the student's tokens.

Importing this module loads neither torch nor pandas: fresh processes import it, and their memory
counts.
"""

import argparse
import csv
import random
import resource
import statistics
import sys
import tempfile
import time
import unicodedata
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

TEACHER = "scratch:1x64"
MAX_LENGTH = 128  # tokens
TOKENIZER_TEXTS = 10_000
ROUNDS = 3
MAX_RATIO = 2.0
MAX_PEAK_MIB = 2048
DUPLICATE_EVERY = 20  # rows
ENGLISH_TEXT = "the river people say that nobody here knows where this road goes after"
BANGLA_TEXT = "আমি তুমি আমরা নদীর পাড়ে বড়ো গাছ দেখে বাড়ি ফিরি যায় না কেউ রাতে"


class Cost(NamedTuple):
    """Wall-clock seconds of a step, and the peak memory of its process so far."""

    seconds: float
    peak_mib: float


class Step(NamedTuple):
    """A named step and its cost."""

    name: str
    cost: Cost


class StepTimer:
    """Measures consecutive steps; `restart` excludes the time since the last step."""

    def __init__(self):
        self.steps: list[Step] = []
        self.restart()

    def restart(self) -> None:
        """Start the clock of the next step."""
        self.start = time.perf_counter()

    def finish(self, name: str) -> None:
        """Record the step that ends now, and start the next."""
        self.steps.append(Step(name, Cost(time.perf_counter() - self.start, process_peak_mib())))
        self.restart()


def process_peak_mib() -> float:
    """Peak resident memory (MiB) of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def write_rows(path: Path, rows: int) -> None:
    """Write a CSV of comments of 3 to 30 words in two scripts, with 0/1 labels.

    Every 20th row is a duplicate of an earlier one that differs in white space.
    """
    rng = random.Random(0)
    vocabularies = (ENGLISH_TEXT.split(), BANGLA_TEXT.split())
    texts: list[str] = []
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text", "label"])
        for index in range(rows):
            if index % DUPLICATE_EVERY == DUPLICATE_EVERY - 1:
                text = f" {rng.choice(texts)}"
            else:
                words = rng.choices(vocabularies[index % 2], k=rng.randint(3, 30))
                text = " ".join([*words, str(index)])
                texts.append(text)
            writer.writerow([index, text, index // 7 % 2])


def write_lines(table_path: Path, lines_path: Path) -> None:
    """Write the texts of a CSV, one per line."""
    with (
        table_path.open(newline="", encoding="utf-8") as table,
        lines_path.open("w", encoding="utf-8") as lines,
    ):
        for row in csv.DictReader(table):
            lines.write(row["text"] + "\n")


def read_audit_and_split(path: str) -> Cost:
    """Read, split and audit a file; the training of the audit's tokenizer is not counted."""
    from compression_config import Options
    from corpus.audit import audit_corpus, audit_table, token_sample
    from corpus.columns import read_corpus
    from data import drop_unusable_rows, split_corpus
    from encoders.scratch import train_wordpiece

    options = Options(dataset_path=path, text_column="text", label_columns=("label",))
    timer = StepTimer()
    corpus = read_corpus(options)
    timer.finish("read")
    splits = split_corpus(drop_unusable_rows(corpus), options)
    timer.finish("split")
    tokenizer = train_wordpiece(token_sample(corpus), MAX_LENGTH)
    timer.restart()
    audit = audit_table(audit_corpus(corpus, splits, {"teacher": tokenizer}, MAX_LENGTH))
    print(audit, file=sys.stderr)
    timer.finish("audit")
    for name, cost in timer.steps:
        print(f"{name} {cost.seconds:.2f} s", file=sys.stderr)
    return Cost(sum(step.cost.seconds for step in timer.steps), process_peak_mib())


def read_with_pandas(path: str) -> Cost:
    """The baseline: `pandas.read_csv` and one NFC pass."""
    import pandas as pd

    start = time.perf_counter()
    table = pd.read_csv(path)
    texts = [unicodedata.normalize("NFC", text) for text in table["text"]]
    assert len(texts) == len(table)
    return Cost(time.perf_counter() - start, process_peak_mib())


def process_unlabeled(path: str) -> list[Step]:
    """The steps of a file of unlabeled texts, without the training of tokenizer and teacher."""
    from datasets import Dataset, DatasetDict

    from corpus.unlabeled import write_unlabeled
    from data import read_tokens, token_lengths, write_tokens
    from distillation import with_teacher_logits, write_teacher_outputs
    from encoders.scratch import scratch_model, train_wordpiece
    from encoders.start import save_model
    from runtime.artifacts import rows_hash
    from task import Task

    folder = Path(path).parent
    teacher_dir = folder / "teacher"
    teacher_dir.mkdir()
    splits = DatasetDict()
    for name in ("train", "validation", "test"):
        splits[name] = Dataset.from_dict({"id": [0], "text": [f"a {name} text"], "label": [0]})
    timer = StepTimer()
    texts = write_unlabeled(path, "text", splits, folder / "unlabeled.arrow")
    timer.finish("read and deduplicated")
    rows_hash(texts)
    timer.finish("fingerprinted")

    tokenizer = train_wordpiece(texts["text"][:TOKENIZER_TEXTS], MAX_LENGTH)
    timer.restart()
    write_tokens(texts, tokenizer, MAX_LENGTH, folder / "tokens.arrow")
    token_lengths(read_tokens(folder / "tokens.arrow"))
    timer.finish("tokenized")

    task = Task(("0", "1"), multi_label=False)
    save_model(*scratch_model(TEACHER, task, [], MAX_LENGTH, tokenizer), teacher_dir)
    timer.restart()
    write_teacher_outputs(teacher_dir, texts, folder, max_length=MAX_LENGTH, batch=32, device="cpu")
    assert len(with_teacher_logits(texts, folder)) == len(texts)
    timer.finish(f"run through a teacher ({TEACHER}) and joined with its logits")
    return timer.steps


def in_fresh_process(function: Callable[[str], Any], path: Path) -> Any:
    """`function(path)` in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, str(path)).result()


def main(argv: list[str] | None = None) -> int:
    """Print the costs; 1 if a limit is exceeded."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--rows", type=int, default=1_000_000, help="rows of the file (default: %(default)s)"
    )
    rows = parser.parse_args(argv).rows
    ratios = []
    peaks_mib = []
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "rows.csv"
        lines = Path(folder) / "lines.txt"
        write_rows(table, rows)
        print(f"{rows} rows, {table.stat().st_size / 1e6:.0f} MB", flush=True)
        for _ in range(ROUNDS):
            cost = in_fresh_process(read_audit_and_split, table)
            baseline = in_fresh_process(read_with_pandas, table)
            ratios.append(cost.seconds / baseline.seconds)
            peaks_mib.append(cost.peak_mib)
            print(
                f"read, audit and split: {cost.seconds:.2f} s, peak {cost.peak_mib:.0f} MiB; "
                f"pandas.read_csv and NFC: {baseline.seconds:.2f} s, peak "
                f"{baseline.peak_mib:.0f} MiB; ratio {ratios[-1]:.2f}",
                flush=True,
            )
        write_lines(table, lines)
        for name, cost in in_fresh_process(process_unlabeled, lines):
            speed = rows / cost.seconds
            print(f"unlabeled texts {name}: {speed:.0f} rows/s, peak {cost.peak_mib:.0f} MiB")
    ratio = statistics.median(ratios)
    peak_mib = max(peaks_mib)
    print(
        f"median ratio {ratio:.2f} (at most {MAX_RATIO}), "
        f"peak {peak_mib:.0f} MiB (at most {MAX_PEAK_MIB})"
    )
    return int(ratio > MAX_RATIO or peak_mib > MAX_PEAK_MIB)


if __name__ == "__main__":
    sys.exit(main())
