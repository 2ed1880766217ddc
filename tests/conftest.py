"""Fixtures of all tests: tiny data, one measuring process, no network, one thread. Importing
this loads no torch."""

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"

import logging  # noqa: E402
import random  # noqa: E402
from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
from builders import FILLER, sentence, write_csv  # noqa: E402

MAX_WORKERS = 4  # each needs up to 3 GB of memory


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """The whole suite runs in one process per core; named files and tests in one process."""
    named_paths = [Path(argument.split("::")[0]) for argument in config.args]
    if any(path.is_file() for path in named_paths):
        return 0
    return min(os.cpu_count() or 1, MAX_WORKERS)


@pytest.fixture(scope="session")
def tiny_csv(tmp_path_factory) -> Path:
    """160 distinct comments in two classes, columns Comments and HateSpeech."""
    rng = random.Random(0)
    rows = [(sentence(rng, i % 2) + f" {i}", i % 2) for i in range(160)]
    path = tmp_path_factory.mktemp("data") / "tiny.csv"
    return write_csv(path, ["Comments", "HateSpeech"], rows)


@pytest.fixture(scope="session")
def tiny_multilabel_csv(tmp_path_factory) -> Path:
    """200 comments with three 0/1 labels, of which any number may apply."""
    rng = random.Random(1)
    marks = {"rude": "cruel", "ad": "buy", "threat": "beware"}
    rows = []
    for i in range(200):
        flags = {name: int(rng.random() < 0.4) for name in marks}
        words = rng.choices(FILLER, k=5)
        words += [word for name, word in marks.items() if flags[name]]
        rows.append([" ".join([*words, str(i)]), *flags.values()])
    path = tmp_path_factory.mktemp("data") / "multilabel.csv"
    return write_csv(path, ["comment", *marks], rows)


@pytest.fixture(scope="session")
def in_measuring_process():
    """One measuring process for all tests that run the pipeline: `call(function, *arguments)`."""
    from runtime.worker import measuring_process

    with measuring_process() as call:
        yield call


@pytest.fixture(autouse=True)
def restore_logging():
    """A run that a test starts in this process leaves no handlers, levels or hidden progress
    bars behind."""
    from runtime.logs import OUR_LOGGERS, ProgressBarHandler

    bars = os.environ.get("TQDM_DISABLE")
    yield
    os.environ.pop("TQDM_DISABLE", None)
    if bars:
        os.environ["TQDM_DISABLE"] = bars
    root = logging.getLogger()
    root.handlers[:] = [one for one in root.handlers if not isinstance(one, ProgressBarHandler)]
    root.setLevel(logging.WARNING)
    for name in OUR_LOGGERS:
        logging.getLogger(name).setLevel(logging.NOTSET)


@pytest.fixture
def run_main(in_measuring_process):
    """`main(argv)` with quick measuring."""
    from measuring import quick_measuring

    from main import main

    with quick_measuring(in_measuring_process):
        yield main
