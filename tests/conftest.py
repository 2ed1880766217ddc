"""Tiny data and tiny models, made on the spot: no network, one thread."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import logging  # noqa: E402
import random  # noqa: E402
from contextlib import contextmanager, nullcontext  # noqa: E402
from pathlib import Path  # noqa: E402

import pandas as pd  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

torch.set_num_threads(1)


NICE, NASTY = ["good", "kind", "warm", "fair", "lovely"], ["bad", "cruel", "vile", "rotten", "foul"]
FILLER = ["the", "a", "people", "here", "there", "today", "river", "house", "road", "we", "they", "say", "see", "go"]


def sentence(rng: random.Random, label: int) -> str:
    """A few fillers around a word that gives the label away."""
    words = rng.choices(FILLER, k=rng.randint(3, 9))
    words.insert(rng.randrange(len(words)), rng.choice(NASTY if label else NICE))
    return " ".join(words)


@pytest.fixture(scope="session")
def tiny_csv(tmp_path_factory) -> Path:
    """160 distinct comments in two classes, columns Comments and HateSpeech."""
    rng = random.Random(0)
    rows = [(sentence(rng, i % 2) + f" {i}", i % 2) for i in range(160)]
    path = tmp_path_factory.mktemp("data") / "tiny.csv"
    pd.DataFrame(rows, columns=["Comments", "HateSpeech"]).to_csv(path, index=False)
    return path


@pytest.fixture(scope="session")
def tiny_multilabel_csv(tmp_path_factory) -> Path:
    """200 comments with three 0/1 labels, of which any may hold at once."""
    rng = random.Random(1)
    marks = {"rude": "cruel", "ad": "buy", "threat": "beware"}
    rows = []
    for i in range(200):
        flags = {name: int(rng.random() < 0.4) for name in marks}
        text = " ".join(rng.choices(FILLER, k=5) + [word for name, word in marks.items() if flags[name]] + [str(i)])
        rows.append({"comment": text} | flags)
    path = tmp_path_factory.mktemp("data") / "multilabel.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


@pytest.fixture(scope="session")
def elsewhere():
    """One measuring process for all tests that run the pipeline."""
    from evaluation import fresh_process

    with fresh_process() as call:
        yield call


@pytest.fixture(autouse=True)
def log_as_it_was():
    """A run that a test starts in this process leaves no handlers, levels and hushed bars behind."""
    from console import OURS, AboveBars

    bars = os.environ.get("TQDM_DISABLE")
    yield
    os.environ.pop("TQDM_DISABLE", None)
    os.environ.update({"TQDM_DISABLE": bars} if bars else {})
    root = logging.getLogger()
    root.handlers[:] = [handler for handler in root.handlers if not isinstance(handler, AboveBars)]
    root.setLevel(logging.WARNING)
    for name in OURS:
        logging.getLogger(name).setLevel(logging.NOTSET)


@contextmanager
def quick_measuring(elsewhere):
    """Runs use the one shared process for all measuring, time each form once, and start none afresh."""
    import benchmark
    import experiment

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "fresh_process", lambda: nullcontext(elsewhere))
        patch.setattr(benchmark, "engine_processes", lambda engines: nullcontext(dict.fromkeys(engines, elsewhere)))
        patch.setattr(benchmark, "start_up", lambda *_: {"load_s": 1.0, "rss_mb": 1.0})
        once = {batch: rhythm._replace(least=1, most=1) for batch, rhythm in benchmark.RHYTHMS.items()}
        patch.setattr(benchmark, "RHYTHMS", once)
        yield


@pytest.fixture
def run_main(elsewhere):
    """`main(argv)` with quick measuring."""
    from main import main

    with quick_measuring(elsewhere):
        yield main
