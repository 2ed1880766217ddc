"""Texts and labeled files that tests make on the spot."""

import csv
import random
from collections.abc import Iterable
from pathlib import Path

NICE = ["good", "kind", "warm", "fair", "lovely"]
NASTY = ["bad", "cruel", "vile", "rotten", "foul"]
FILLER = [
    "the",
    "a",
    "people",
    "here",
    "there",
    "today",
    "river",
    "house",
    "road",
    "we",
    "they",
    "say",
    "see",
    "go",
]


def sentence(rng: random.Random, label: int) -> str:
    """A few fillers around a word that gives the label away."""
    words = rng.choices(FILLER, k=rng.randint(3, 9))
    words.insert(rng.randrange(len(words)), rng.choice(NASTY if label else NICE))
    return " ".join(words)


def write_csv(path: Path, header: list[str], rows: Iterable[Iterable]) -> Path:
    """A CSV file with a header."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
    return path
