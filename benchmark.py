"""Time, start-up and memory of all forms of a run, timed in turn, so that the machine's moods hit them alike.

Each engine has one process, which holds its forms; each round visits every form once, with the same input. Timed is
the forward pass of a batch that is already tokenized. `python benchmark.py DIR DIR ...` compares any artifacts.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
from tqdm import tqdm

from compression_config import POSITIVE, UserError
from engines.engine import ModelFormat, formats_in, load_engine
from runtime import cpu
from runtime.command_line import convert
from runtime.logs import set_up_process

INPUT_KINDS = {  # kind of input, by the column it fills -> texts in a batch, tokens in a text (None: as many as it has)
    "latency_ms_p50": (1, None),
    "latency_ms_p50_len32": (1, 32),
    "latency_ms_p50_len128": (1, 128),
    "throughput": (32, None),
    "throughput_len32": (32, 32),
    "throughput_len128": (32, 128),
    "tokenize_ms": (1, None),
}

BUDGET_S = (
    2.0  # per form and kind of input; beyond it a kind ends as soon as it has its least rounds
)

WARM_UP_S = 0.5  # at most, per burst

STEADY_SPREAD = 1.25  # highest median / min over passes on one input that is trusted

STEADY_CORE_WAIT = (
    0.05  # highest share of the timed seconds that threads may have waited for a core
)

INSTRUCTION_SETS = (
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
)

SENTENCES = (
    "It rained.",
    "The train to the coast leaves at nine and stops at every village on the way.",
    "We had soup, bread and a little cheese.",
    "Has anybody seen the key to the old garden gate?",
)

COLUMNS = (  # heading, metric, format
    ("Form", "form", "{}"),
    ("Engine", "engine", "{}"),
    ("Size (MB)", "size_mb", "{:.2f}"),
    ("p50 (ms)", "latency_ms_p50", "{:.2f}"),
    ("p95", "latency_ms_p95", "{:.2f}"),
    ("min", "latency_ms_min", "{:.2f}"),
    ("32 tokens", "latency_ms_p50_len32", "{:.2f}"),
    ("128 tokens", "latency_ms_p50_len128", "{:.2f}"),
    ("Texts/s", "throughput", "{:.0f}"),
    ("Tokenize (ms)", "tokenize_ms", "{:.2f}"),
    ("Load (s)", "load_s", "{:.1f}"),
    ("Memory (MiB)", "rss_mb", "{:.0f}"),
)


class TimingPlan(NamedTuple):
    """How much of a kind of input a form is timed on in its turn, and how many turns it gets."""

    inputs: int  # of one burst
    passes: int  # timed over each of them, after one that is not
    least: int  # rounds, however long they take
    most: int  # rounds, where BUDGET_S lasts


TIMING_PLANS = {
    1: TimingPlan(inputs=5, passes=4, least=3, most=12),
    32: TimingPlan(inputs=1, passes=2, least=2, most=6),
}

TIMED_CALLS: dict[
    str, dict[str, list[Callable[[], object]]]
] = {}  # in an engine's process: form -> kind -> timed calls


@dataclass(frozen=True)
class Burst:
    """The seconds of each pass over each input, all that time in one, and how long threads waited for a core in it."""

    seconds: list[list[float]]
    elapsed_s: float
    core_wait_s: float


def input_batches(texts: list[str], batch: int, tokens: int | None) -> list[list[str]]:
    """The batches of one kind of input; where the length is fixed, one, of texts that are long enough to be cut."""
    if tokens is None:
        endless = cycle(texts)
        return [
            list(islice(endless, batch))
            for _ in range(TIMING_PLANS[batch].inputs * TIMING_PLANS[batch].most)
        ]
    words = cycle([word for text in texts for word in text.split()])
    return [[" ".join(islice(words, 2 * tokens)) for _ in range(batch)]]


def cut_to_length(batch: Any, tokens: int | None) -> Any:
    """A tokenized batch at exactly `tokens` tokens, the last one kept ([SEP]); as it is where there is no length."""
    if tokens is None:
        return batch
    columns = [*range(tokens - 1), -1]
    return type(batch)({name: values[:, columns] for name, values in batch.items()})


def prepare_format(
    name: str, path: Path, form: str, texts: list[str], max_length: int, threads: int, device: str
) -> list[str]:
    """Load a form into this process and tokenize its inputs; the kinds of input that it can be timed on."""
    served = load_engine(path, form, max_length, threads, device)
    TIMED_CALLS[name] = {}
    for kind, (batch, tokens) in INPUT_KINDS.items():
        tokenizes = kind == "tokenize_ms"
        if (tokens or 0) > max_length or (form == "linear" and (tokens or tokenizes)):
            continue
        chunks = input_batches(texts, batch, tokens)
        TIMED_CALLS[name][kind] = [
            partial(served.encode, chunk)
            if tokenizes
            else partial(served.forward, cut_to_length(served.encode(chunk), tokens))
            for chunk in chunks
        ]
    return list(TIMED_CALLS[name])


def seconds_of(call: Callable[[], object]) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def core_wait_s() -> float:
    """Seconds that threads of this process have been ready to run and without a core (Linux; elsewhere 0)."""
    waited_ns = 0
    for file in Path("/proc/self/task").glob("*/schedstat"):
        with suppress(OSError):  # the thread has just ended
            waited_ns += int(file.read_text().split()[1])
    return waited_ns / 1e9


def wait_until_idle() -> None:
    """Wait until the thread pools of this process sleep, half a second at most.

    After a pass ONNX Runtime's threads spin on for 34 ms and OpenMP's for 3-7 ms (measured; longer on some CPUs) and
    would take a core from the next engine. The engines' settings are left alone: users run with them.
    """
    for _ in range(250):
        used = time.process_time()
        time.sleep(0.002)
        if time.process_time() - used < 0.0005:
            return


def warm_up(call: Callable[[], object]) -> None:
    """Call for 20 ms at least, and until the threads no longer wait for a core, WARM_UP_S at most.

    The kernel of a virtual machine may wake a pool that has slept on one core, and takes about 0.1 s to part it.
    """
    end, share = time.perf_counter() + WARM_UP_S, 1.0
    while share > STEADY_CORE_WAIT and time.perf_counter() < end:
        start, before = time.perf_counter(), core_wait_s()
        while time.perf_counter() - start < 0.02:
            call()
        share = (core_wait_s() - before) / (time.perf_counter() - start)


def time_burst(name: str, kind: str, turn: int) -> Burst:
    """Time the next few inputs of a form, in the process that holds it: warm, and leaving the cores free."""
    calls, rhythm = TIMED_CALLS[name][kind], TIMING_PLANS[INPUT_KINDS[kind][0]]
    chosen = [calls[(turn * rhythm.inputs + i) % len(calls)] for i in range(rhythm.inputs)]
    warm_up(chosen[0])
    start, before = time.perf_counter(), core_wait_s()
    seconds = [[seconds_of(call) for _ in range(1 + rhythm.passes)][1:] for call in chosen]
    elapsed, waited = time.perf_counter() - start, core_wait_s() - before
    wait_until_idle()
    return Burst(seconds, elapsed, waited)


def interleaved(
    timed: Callable[[str, str, int], Burst], names: list[str], kind: str
) -> dict[str, list[Burst]]:
    """Form -> its bursts: every round visits all forms once, with the same inputs."""
    rhythm = TIMING_PLANS[INPUT_KINDS[kind][0]]
    end = time.perf_counter() + BUDGET_S * len(names)
    found: dict[str, list[Burst]] = {name: [] for name in names}
    for turn in tqdm(range(rhythm.most), desc=f"benchmark, {kind}", leave=False):
        if turn >= rhythm.least and time.perf_counter() > end:
            break
        for name in names:
            found[name].append(timed(name, kind, turn))
    return found


def is_steady(spread: float, core_wait: float) -> bool:
    """Whether times can be trusted: passes over one input took alike long, and nobody else held our cores."""
    return spread <= STEADY_SPREAD and core_wait <= STEADY_CORE_WAIT


def timing_figures(bursts: dict[str, list[Burst]]) -> dict[str, Any]:
    """The columns that a form's bursts, by kind of input, give; None for a kind that it was not timed on.

    `spread` is median / min over the passes of one input at batch 1 and own length, the median of all such inputs;
    `core_wait` the time that ready threads waited for a core, as a share of all the time.
    """
    row: dict[str, Any] = dict.fromkeys(INPUT_KINDS)
    for kind, found in bursts.items():
        batch, p50 = (
            INPUT_KINDS[kind][0],
            statistics.median(s for one in found for passes in one.seconds for s in passes),
        )
        row[kind] = 1000 * p50 if batch == 1 else batch / p50
    inputs = [passes for one in bursts["latency_ms_p50"] for passes in one.seconds]
    spread = statistics.median(statistics.median(passes) / min(passes) for passes in inputs)
    every = [one for found in bursts.values() for one in found]
    core_wait = sum(one.core_wait_s for one in every) / sum(one.elapsed_s for one in every)
    return row | {
        "latency_ms_p95": 1000 * float(np.percentile(inputs, 95)),
        "spread": spread,
        "latency_ms_min": 1000 * float(np.min(inputs)),
        "core_wait": core_wait,
        "steady": is_steady(spread, core_wait),
    }


@contextmanager
def engine_processes(engines: set[str]) -> Iterator[dict[str, Callable[..., Any]]]:
    """Engine -> `call(function, *arguments)` in a process of its own."""
    from runtime.worker import measuring_process

    with ExitStack() as stack:
        yield {engine: stack.enter_context(measuring_process()) for engine in sorted(engines)}


def answer_in_fresh_process() -> None:
    """What a fresh process runs: load a form, answer texts from stdin one by one, say when and how large it is."""
    path, form, max_length, threads, device, texts = json.load(sys.stdin)
    served = load_engine(path, form, max_length, threads, device)
    answered = []
    for text in texts:
        served.forward(served.encode([text]))
        answered.append(time.perf_counter())
    print(
        json.dumps({"answered": answered[0], "rss_mb": psutil.Process().memory_info().rss / 2**20})
    )


def start_up(
    form: ModelFormat, texts: list[str], max_length: int, threads: int, device: str
) -> dict[str, float]:
    """`load_s`, from the start of a fresh Python to its first answer, and `rss_mb`, its memory (MiB) after five."""
    given = json.dumps(
        [str(form.path.resolve()), form.served, max_length, threads, device, texts[:5]]
    )
    start = time.perf_counter()  # a clock of the whole system: the other process reads the same one
    done = subprocess.run(
        [sys.executable, "-c", "import benchmark; benchmark.serve_afresh()"],
        input=given,
        check=True,
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
    )
    said = json.loads(done.stdout.splitlines()[-1])
    return {"load_s": said["answered"] - start, "rss_mb": said["rss_mb"]}


def measure(
    forms: list[ModelFormat],
    texts: list[str],
    max_length: int,
    device: str,
    seed: int,
    threads: int | None = None,
    timed: Collection[str] | None = None,
) -> dict[str, dict[str, Any]]:
    """Form name -> what `figures` and `start_up` find, and `threads`: the same for all, by default torch's own number.
    `timed` are the kinds of input, `latency_ms_p50` among them; by default all.

    The linear reference has no work but its vectorizer's, so its time includes that.
    """
    import torch

    threads, timed = threads or torch.get_num_threads(), timed or INPUT_KINDS
    texts = random.Random(seed).sample(texts, min(len(texts), 32 * TIMING_PLANS[32].most))
    with engine_processes({form.engine for form in forms}) as processes:
        call = {form.name: processes[form.engine] for form in forms}
        kinds = {
            form.name: call[form.name](
                prepare_format,
                form.name,
                form.path,
                form.served,
                texts,
                max_length,
                threads,
                device,
            )
            for form in forms
        }
        found = {
            kind: interleaved(
                lambda name, *which: call[name](time_burst, name, *which),
                [name for name in kinds if kind in kinds[name]],
                kind,
            )
            for kind in timed
        }
    bursts = {
        form.name: {kind: found[kind][form.name] for kind in timed if kind in kinds[form.name]}
        for form in forms
    }
    return {
        form.name: timing_figures(bursts[form.name])
        | start_up(form, texts, max_length, threads, device)
        | {"threads": threads}
        for form in tqdm(forms, desc="benchmark, fresh processes", leave=False)
    }


def add_speedups(
    rows: dict[str, dict],
    times: dict[str, dict],
    baselines: dict[str, str],
    engines: dict[str, str],
) -> None:
    """Put times into `rows`, and their ratios to the fp32 teacher: in torch, and in the row's own engine.

    `engines` maps row -> engine; `baselines` maps engine -> the timed form that is the fp32 teacher there.
    `speedup_engine` is None where the teacher has no form in that engine (the linear reference).
    """
    for name, row in rows.items():
        row |= times[name]
        same_engine = baselines.get(engines[name])
        p50 = row["latency_ms_p50"]
        row["speedup_torch"] = times[baselines["torch"]]["latency_ms_p50"] / p50
        row["speedup_engine"] = times[same_engine]["latency_ms_p50"] / p50 if same_engine else None


def machine_description() -> dict[str, Any]:
    """The machine that times were measured on: CPU and its instruction sets, cores, memory (GiB), GPU."""
    import torch

    held = cpu.instruction_sets()
    return {
        "cpu": cpu.cpu_name(),
        "instruction_sets": [name for name in INSTRUCTION_SETS if name in held],
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
    }


def formats_to_time(directory: Path, max_length: int) -> list[str]:
    """The forms that a directory holds; UserError where it holds none that can be served."""
    if not directory.is_dir():
        raise UserError(f"DIR is {directory}, but there is no such directory")
    forms = formats_in(directory)
    if not forms:
        raise UserError(
            f"DIR is {directory}, but must hold model.safetensors, onnx/*.onnx, openvino/*.xml or "
            "linear.joblib"
        )
    if forms != ["linear"]:
        check_reading(directory, max_length)
    return forms


def check_reading(directory: Path, max_length: int) -> None:
    """UserError where a transformer's directory has no config or tokenizer, or reads less than `max_length` tokens."""
    from transformers import AutoConfig

    from encoders.families import position_limit

    if not all(
        (directory / name).is_file()
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json")
    ):
        raise UserError(
            f"DIR is {directory}, but must hold config.json, tokenizer.json and tokenizer_config.json "
            "beside its model"
        )
    try:
        limit = position_limit(AutoConfig.from_pretrained(directory, local_files_only=True))
    except (OSError, ValueError, KeyError, AttributeError):
        raise UserError(
            f"DIR is {directory}, whose config.json cannot be read as an encoder's"
        ) from None
    if limit < max_length:
        raise UserError(
            f"--max_length is {max_length}, but {directory} reads at most {limit} tokens"
        )


def read_texts(path: str | None) -> list[str]:
    """The lines of a file that are not blank; without a file, built-in sentences strung to several lengths."""
    if path is None:
        sentences = cycle(SENTENCES)
        return [" ".join(islice(sentences, 1 + i % 4)) for i in range(60)]
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--texts is {path}, but it cannot be read as UTF-8: {error}") from None
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise UserError(f"--texts is {path}, but must hold one text per line")
    return texts


def name_formats(directories: list[Path], held: list[list[str]]) -> list[ModelFormat]:
    """A form for each that a directory holds; one given again is numbered: `DIR (2)`."""
    from engines.engine import ModelFormat

    forms: list[ModelFormat] = []
    for directory, served in zip(directories, held, strict=True):
        for one in served:
            name = f"{directory} [{one}]" if len(served) > 1 else str(directory)
            before = sum((form.path, form.served) == (directory, one) for form in forms)
            forms.append(ModelFormat(f"{name} ({before + 1})" if before else name, directory, one))
    return forms


def compare(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Check everything that the command line names, then measure it; a row per form."""
    errors: list[str] = []

    def checked(check: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return check(*arguments)
        except UserError as error:
            errors.extend(error.lines)

    if options.threads is not None and not POSITIVE.holds(options.threads):
        errors.append(f"--threads is {options.threads}, but {POSITIVE.text}")
    max_length, texts = (
        checked(convert, "max_length", options.max_length),
        checked(read_texts, options.texts),
    )
    held = [
        checked(formats_to_time, directory, max_length or 0) for directory in options.directories
    ]
    if errors:
        raise UserError(*errors)

    from evaluation import size_on_disk

    forms = name_formats(options.directories, held)
    found = measure(forms, texts, max_length, "cpu", 0, options.threads)
    return [
        found[form.name] | size_on_disk(form) | {"form": form.name, "engine": form.engine}
        for form in forms
    ]


def row_cells(row: dict[str, Any]) -> list[str]:
    """A row as the printed table shows it: `*` marks a form whose times are not steady, `-` what it has not."""
    row = row | {"form": row["form"] + ("" if row["steady"] else " *")}
    return ["-" if row[column] is None else text.format(row[column]) for _, column, text in COLUMNS]


def main(argv: list[str] | None = None) -> int:
    """Compare the directories that the command line names; the table goes to stdout, all else to stderr."""
    from reporting.results import aligned_table

    parser = argparse.ArgumentParser(
        prog="benchmark.py", description="Time any model directories in turn, on the CPU."
    )
    parser.add_argument(
        "directories", nargs="+", type=Path, metavar="DIR", help="what a stage or a run wrote"
    )
    parser.add_argument(
        "--texts",
        metavar="FILE",
        help="UTF-8 file, one text per line (default: built-in sentences)",
    )
    parser.add_argument(
        "--threads", metavar="INT", type=int, help="threads of every engine (default: torch's own)"
    )
    parser.add_argument(
        "--max_length", metavar="INT", default="128", help="tokens per text (default: 128)"
    )
    options = parser.parse_args(argv)
    set_up_process()
    try:
        rows = compare(options)
    except KeyboardInterrupt:
        print("benchmark.py: stopped", file=sys.stderr)
        return 130
    except UserError as error:
        return error.print_to_stderr("benchmark.py")
    about = machine_description()
    print(f"{about['cpu']}, {about['cores']} cores, {rows[0]['threads']} threads", file=sys.stderr)
    if not all(row["steady"] for row in rows):
        print("the machine was busy: do not trust the times of the forms marked *", file=sys.stderr)
    print(aligned_table([[heading for heading, _, _ in COLUMNS], *map(row_cells, rows)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
