"""Read, audit and split a file of a million rows, against `pandas.read_csv` and a bare NFC pass over its texts.

`python scripts/bench_data.py [--rows 1000000]`. Each runs in a process of its own, in turn; prints seconds, the peak
of the memory, and the ratio. Exit code 1 where the ratio is above 2 or the peak above 2 GiB. Then as many lines of
text without labels, as `--unlabeled_path` takes them, up to the tokens that a student reads.
"""

import argparse
import csv
import random
import resource
import sys
import tempfile
import time
import unicodedata
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
TEACHER = "scratch:1x64"
MOST_RATIO, MOST_MIB = 2.0, 2048
ENGLISH = (
    "the",
    "river",
    "people",
    "say",
    "that",
    "nobody",
    "here",
    "knows",
    "where",
    "this",
    "road",
    "goes",
    "after",
)
BANGLA = (
    "আমি",
    "তুমি",
    "আমরা",
    "নদীর",
    "পাড়ে",
    "বড়ো",
    "গাছ",
    "দেখে",
    "বাড়ি",
    "ফিরি",
    "যায়",
    "না",
    "কেউ",
    "রাতে",
)


def write_file(path: Path, rows: int) -> None:
    """Comments of 3 to 30 words in two scripts, one in twenty a copy with other blanks, with a 0/1 label."""
    rng, texts = random.Random(0), []
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text", "label"])
        for i in range(rows):
            if i % 20 == 19:
                text = f" {rng.choice(texts)}"
            else:
                text = (
                    " ".join(rng.choices(BANGLA if i % 2 else ENGLISH, k=rng.randint(3, 30)))
                    + f" {i}"
                )
                texts.append(text)
            writer.writerow([i, text, i // 7 % 2])


def ours(path: str) -> tuple[float, float]:
    """Seconds and peak memory (MiB) of reading, auditing and splitting."""
    from compression_config import Options
    from corpus.audit import audit_corpus, audit_table, token_sample
    from corpus.columns import read_corpus
    from data import drop_unusable_rows, split_corpus
    from encoders.scratch import train_wordpiece

    options = Options(dataset_path=path, text_column="text", label_columns=("label",))
    start = time.perf_counter()
    labelled = read_corpus(options)
    read = time.perf_counter()
    splits = split_corpus(drop_unusable_rows(labelled), options)
    split = time.perf_counter()
    tokenizer = train_wordpiece(token_sample(labelled), 128)
    trained = time.perf_counter()
    print(audit_table(audit_corpus(labelled, splits, {"teacher": tokenizer}, 128)), file=sys.stderr)
    end = time.perf_counter()
    print(
        f"read {read - start:.2f} s, split {split - read:.2f} s, audit {end - trained:.2f} s",
        file=sys.stderr,
    )
    return end - start - (trained - split), resource.getrusage(
        resource.RUSAGE_SELF
    ).ru_maxrss / 1024


def unlabeled(path: str) -> dict[str, tuple[float, float]]:
    """Seconds of a step over a file of lines, and the peak memory (MiB) up to its end."""
    from datasets import Dataset, DatasetDict

    from compression_config import Options
    from data import read_tokens, token_lengths, write_tokens, write_unlabeled
    from distillation import with_teacher_logits, write_teacher_outputs
    from encoders.scratch import scratch_model, train_wordpiece
    from encoders.start import save_model
    from runtime.artifacts import rows_hash
    from task import Task

    rows = {
        name: Dataset.from_dict({"id": [0], "text": [f"a {name} text"], "label": [0]})
        for name in ("train", "validation", "test")
    }
    folder, found, start = Path(path).parent, {}, time.perf_counter()

    def step(name: str) -> None:
        nonlocal start
        found[name] = (
            time.perf_counter() - start,
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        )
        start = time.perf_counter()

    texts = write_unlabeled(path, "text", DatasetDict(rows), folder / "unlabeled.arrow")
    step("read and cleared of copies")
    rows_hash(texts)
    step("fingerprinted")
    tokenizer = train_wordpiece(texts["text"][:10_000], 128)
    start = time.perf_counter()
    write_tokens(texts, tokenizer, 128, folder / "tokens.arrow")
    token_lengths(read_tokens(folder / "tokens.arrow"))
    step("tokenized")
    (folder / "teacher").mkdir()
    save_model(
        *scratch_model(TEACHER, Task(("0", "1"), False), [], 128, tokenizer), folder / "teacher"
    )
    start = time.perf_counter()
    write_teacher_outputs(folder / "teacher", texts, folder, Options(device="cpu", max_length=128))
    assert len(with_teacher_logits(texts, folder)) == len(texts)
    step(f"run through a teacher ({TEACHER}) and joined with its logits")
    return found


def bare(path: str) -> tuple[float, float]:
    """Seconds and peak memory (MiB) of the least one could do."""
    import pandas as pd

    start = time.perf_counter()
    table = pd.read_csv(path)
    texts = [unicodedata.normalize("NFC", text) for text in table["text"]]
    assert len(texts) == len(table)
    return time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def alone(function, path: str):
    """`function(path)` in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, path).result()


def main() -> int:
    """Three rounds in turn; the medians count."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the file")
    rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.csv"
        write_file(path, rows)
        print(f"{rows} rows, {path.stat().st_size / 1e6:.0f} MB", flush=True)
        rounds = [(alone(ours, str(path)), alone(bare, str(path))) for _ in range(3)]
        lines = Path(folder) / "lines.txt"
        with (
            lines.open("w", encoding="utf-8") as file,
            path.open(newline="", encoding="utf-8") as table,
        ):
            file.writelines(row["text"] + "\n" for row in csv.DictReader(table))
        for name, (seconds, peak) in alone(unlabeled, str(lines)).items():
            print(
                f"lines without labels {name}: {rows / seconds:.0f} rows/s, peak {peak:.0f} MiB",
                flush=True,
            )
    for (seconds, peak), (least, least_peak) in rounds:
        print(
            f"read, audited, split: {seconds:.2f} s, peak {peak:.0f} MiB; pandas.read_csv and NFC: {least:.2f} s, "
            f"peak {least_peak:.0f} MiB; ratio {seconds / least:.2f}"
        )
    ratio = sorted(one[0] / other[0] for one, other in rounds)[1]
    peak = max(one[1] for one, _ in rounds)
    print(
        f"median ratio {ratio:.2f} (at most {MOST_RATIO}), peak {peak:.0f} MiB (at most {MOST_MIB})"
    )
    return int(ratio > MOST_RATIO or peak > MOST_MIB)


if __name__ == "__main__":
    sys.exit(main())
