"""The headline benchmark: our recipes against common alternatives, on real files.

    python -m benchmarks.headline --english FILE --bangla FILE --teacher DIR --output_dir OUT

Prints a table per file and writes it into docs/benchmarks.md. Quality is measured on the test split
of every seed; finished stages in OUT are reused. Bytes and times are those of the first seed. All
formats of a file are timed interleaved in one run, on `--threads` threads, against the fp32 teacher
in torch.
"""

import argparse
import random
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from compression_config import Options
from runtime.command_line import parse_options

PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
ENGLISH = {  # recipe -> options; chosen beforehand on the validation rows of seed 1
    "teacher": "--pipeline baseline --export all",
    "3 layers": "--pipeline kd_only --student_path teacher:3 --lr 1e-4 --kd_alpha 0.9 --epochs 5 "
    "--export all",
    "2 layers": "--pipeline kd_only --student_path teacher:2 --lr 1e-4 --kd_alpha 0.9 --epochs 5 "
    "--export all",
    "small": "--pipeline kd_only --student_path teacher:3 --ffn_width 384 --trim_vocab 5500 "
    "--lr 1e-4 --kd_alpha 0.9 --augment 2 --epochs 7 --early_stopping_patience 7 --export all",
}
BANGLA = {
    "teacher": "--pipeline baseline --export all",
    "2 layers": "--pipeline kd_only --student_path teacher:2 --epochs 5 --kd_baseline --export all",
    "small": "--pipeline kd_only --student_path teacher:2 --ffn_width 256 --trim_vocab 4000 "
    "--epochs 5 --augment 2 --export all",
}
RECIPES_ON_ALL_SEEDS = ("small",)  # the other recipes and the peers run on the first seed only
INTERMEDIATE_STAGES = ("start", "trimmed", "narrowed")
TEACHER_ROW = "teacher, torch fp32"
CALIBRATION_TEXTS = 300  # NNCF's default
TEST_SHARE = 0.2 / 0.7  # test rows / training rows
MAX_LENGTH = 128
HEADINGS = (
    "recipe, format",
    "MB",
    "smaller",
    "ms",
    "faster",
    "texts/s",
    "macro-F1",
    "vs teacher (points)",
    "relative",
)


class SeedResult(NamedTuple):
    """The rows and formats of all recipes on one split; `run` is the run of the last recipe."""

    rows: dict[str, dict[str, Any]]  # "recipe, format" -> row of the results
    formats: dict[str, Any]  # "recipe, format" -> ModelFormat
    teacher_f1: float
    run: Any


@dataclass
class Line:
    """One line of the table."""

    name: str
    size_mb: float
    compression: float
    latency_ms: float
    speedup: float | None  # None if the machine was too busy for a ratio
    texts_s: float
    macro_f1: float  # mean over seeds
    delta: float  # macro-F1 minus the teacher's, mean over seeds
    delta_low: float | None  # None: too few seeds
    delta_high: float | None
    relative_delta: float  # as a fraction of the teacher's macro-F1
    is_steady: bool
    is_on_pareto_front: bool = False

    def is_dominated_by(self, rival: "Line") -> bool:
        """Whether a rival is at least as small, as fast and as good."""
        return (
            rival.size_mb <= self.size_mb
            and rival.latency_ms <= self.latency_ms
            and rival.macro_f1 >= self.macro_f1
        )

    def cells(self) -> list[str]:
        """The cells of a Markdown table."""
        name = f"**{self.name}**" if self.is_on_pareto_front else self.name
        if not self.is_steady:
            name += " *"
        difference = f"{100 * self.delta:+.2f}"
        if self.delta_low is not None:
            difference += f" [{100 * self.delta_low:+.1f}, {100 * self.delta_high:+.1f}]"
        return [
            name,
            f"{self.size_mb:.2f}",
            f"{self.compression:.1f}x",
            f"{self.latency_ms:.2f}",
            "n/a" if self.speedup is None else f"{self.speedup:.1f}x",
            f"{self.texts_s:.0f}",
            f"{self.macro_f1:.4f}",
            difference,
            f"{100 * self.relative_delta:+.1f} %",
        ]


def run_recipe(argv: list[str]) -> Any:
    """Run the stages of one run without timing them; returns its `StageRunner`."""
    from corpus.columns import read_corpus
    from experiments.experiment import open_experiments
    from runtime.logs import log_to_files

    options = parse_options(argv)
    corpus = read_corpus(options)
    with log_to_files() as run_log, open_experiments([options], corpus, run_log) as (experiment,):
        (run,) = experiment.runners
        run.run()
    teacher_bytes = run.rows["teacher"]["bytes"]
    for row in run.rows.values():
        row["compression_ratio"] = teacher_bytes / row["bytes"]
    return run


def row_label(recipe: str, stage: str) -> str:
    """The name of a stage's row in the table."""
    labels = {
        "linear": "TF-IDF, logistic regression",
        "teacher": TEACHER_ROW,
        "student": f"{recipe}, torch fp32",
        "student_plain": f"{recipe} fine-tuned without a teacher",
    }
    return labels.get(stage, f"{recipe}, {stage}")


def write_bfloat16(teacher_dir: Path, out_dir: Path) -> None:
    """Write the teacher with bfloat16 weights; torch then computes in bfloat16."""
    import torch
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(teacher_dir, dtype=torch.bfloat16)
    model.save_pretrained(out_dir)


def write_peers(teacher_dir: Path, texts: list[str], out_dir: Path) -> dict[str, Any]:
    """Write common alternatives; name -> format."""
    from benchmarks.peers import nncf_quantize_with_defaults, quantize_dynamic_with_defaults
    from engines.engine import ModelFormat, tokenizer_files
    from engines.graphs import Calibration, write_onnx

    shutil.rmtree(out_dir, ignore_errors=True)
    onnx_path = out_dir / "onnx" / "model.onnx"
    openvino_path = out_dir / "openvino" / "model.xml"
    onnx_path.parent.mkdir(parents=True)
    openvino_path.parent.mkdir()
    for path in [teacher_dir / "config.json", *tokenizer_files(teacher_dir)]:
        shutil.copy2(path, out_dir)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "model.onnx"
        write_onnx(teacher_dir, source)
        quantize_dynamic_with_defaults(source, onnx_path)
        calibration = Calibration(teacher_dir, texts, MAX_LENGTH)
        nncf_quantize_with_defaults(source, openvino_path, calibration)
    write_bfloat16(teacher_dir, out_dir)
    engines = {
        "teacher, quantize_dynamic": "onnx",
        "teacher, nncf.quantize": "openvino",
        "teacher, torch bf16": "torch",
    }
    return {name: ModelFormat(name, out_dir, engine) for name, engine in engines.items()}


def add_peers(result: SeedResult, out_dir: Path) -> None:
    """Write, evaluate and add common alternatives."""
    from evaluation import evaluate

    run = result.run
    texts = run.splits["train"][:CALIBRATION_TEXTS]["text"]
    test_path = run.directory / "splits" / "test.parquet"
    teacher_path = run.directory / "predictions" / "teacher.parquet"
    options = Options(device="cpu")
    for name, peer in write_peers(run.directory / "teacher", texts, out_dir).items():
        out_path = out_dir / f"{peer.engine}.parquet"
        row = evaluate(peer, test_path, run.task, options, teacher_path, out_path)
        row["compression_ratio"] = run.rows["teacher"]["bytes"] / row["bytes"]
        result.rows[name] = row
        result.formats[name] = peer


def run_seed(recipes: dict[str, str], common: list[str], seed: int) -> SeedResult:
    """Run the recipes on the split of one seed."""
    rows: dict[str, dict[str, Any]] = {}
    formats: dict[str, Any] = {}
    for recipe, options in recipes.items():
        experiment = f"{recipe.replace(' ', '_')}_s{seed}"
        argv = [*common, *options.split(), "--seed", str(seed), "--experiment", experiment]
        run = run_recipe(argv)
        formats_by_stage = {model_format.name: model_format for model_format in run.formats}
        for stage, row in run.rows.items():
            is_repeated_teacher = stage == "teacher" and recipe != "teacher"
            if stage in INTERMEDIATE_STAGES or is_repeated_teacher:
                continue
            label = row_label(recipe, stage)
            rows[label] = row
            formats[label] = formats_by_stage[stage]
    return SeedResult(rows, formats, run.rows["teacher"]["macro_f1"], run)


def time_formats(
    formats: dict[str, Any], texts: list[str], threads: int
) -> dict[str, dict[str, Any]]:
    """Name -> times, measured interleaved."""
    from engines import latency

    named = [replace(model_format, name=name) for name, model_format in formats.items()]
    kinds = ("latency_ms_p50", "throughput")
    num_texts = min(len(texts), 32 * latency.TIMING_PLANS[32].max_rounds)
    sample = random.Random(0).sample(texts, num_texts)
    bursts = latency.time_formats(named, sample, MAX_LENGTH, "cpu", threads, kinds)
    return {name: latency.timing_metrics(bursts[name], threads) for name in formats}


def mean(values: list[float]) -> float:
    """Arithmetic mean."""
    return sum(values) / len(values)


def make_line(
    name: str, results: list[SeedResult], times: dict[str, Any], teacher_times: dict[str, Any]
) -> Line:
    """Bytes of the first seed, times, and means over the seeds that have this row."""
    from engines import latency
    from metrics import interval_of_mean

    first = results[0].rows[name]
    with_row = [result for result in results if name in result.rows]
    deltas = [result.rows[name]["delta_macro_f1"] for result in with_row]
    if len(with_row) > 1:
        _, _, low, high = interval_of_mean(deltas, TEST_SHARE)
    else:
        low = first["delta_macro_f1_low"]
        high = first["delta_macro_f1_high"]
    return Line(
        name=name,
        size_mb=first["size_mb"],
        compression=first["compression_ratio"],
        latency_ms=times["latency_ms_p50"],
        speedup=latency.speedup(teacher_times, times),
        texts_s=times["throughput"],
        macro_f1=mean([result.rows[name]["macro_f1"] for result in with_row]),
        delta=mean(deltas),
        delta_low=low,
        delta_high=high,
        relative_delta=mean(deltas) / mean([result.teacher_f1 for result in with_row]),
        is_steady=times["steady"],
    )


def mark_pareto_front(lines: list[Line]) -> None:
    """Mark the lines that no other line dominates in MB, milliseconds and macro-F1."""
    for line in lines:
        rivals = [rival for rival in lines if rival is not line]
        line.is_on_pareto_front = not any(line.is_dominated_by(rival) for rival in rivals)


def make_table(results: list[SeedResult], times: dict[str, dict[str, Any]]) -> list[Line]:
    """The lines of all rows of the first seed, smallest first."""
    teacher_times = times[TEACHER_ROW]
    lines = [make_line(name, results, times[name], teacher_times) for name in results[0].rows]
    mark_pareto_front(lines)
    return sorted(lines, key=lambda line: line.size_mb)


def markdown(lines: list[Line]) -> str:
    """A Markdown table; lines on the Pareto front are bold, `*` marks a busy machine."""
    rows = [" | ".join(HEADINGS)]
    rows += [" | ".join(line.cells()) for line in lines]
    rule = "|---" + "|--:" * (len(HEADINGS) - 1) + "|"
    table = [f"| {row} |" for row in rows]
    return "\n".join([table[0], rule, *table[1:]])


def make_section(
    name: str,
    recipes: dict[str, str],
    common: list[str],
    peers_dir: Path,
    options: argparse.Namespace,
) -> str:
    """Run all recipes on one file; returns its section of the page."""
    first_seed, *more_seeds = options.seeds
    results = [run_seed(recipes, common, first_seed)]
    add_peers(results[0], peers_dir)
    repeated = {recipe: recipes[recipe] for recipe in RECIPES_ON_ALL_SEEDS}
    for seed in more_seeds:
        results.append(run_seed(repeated, common, seed))
    texts = results[0].run.splits["test"][:]["text"]
    times = time_formats(results[0].formats, texts, options.threads)
    seeds = " ".join(map(str, options.seeds))
    names = ", ".join(f"`{recipe}`" for recipe in RECIPES_ON_ALL_SEEDS)
    lines = [f"## {name}", "", f"Seed {first_seed}; {names} on seeds {seeds}.", ""]
    lines += [f"- {recipe}: `{arguments}`" for recipe, arguments in recipes.items()]
    lines += ["", markdown(make_table(results, times))]
    return "\n".join(lines)


def replace_section(page: str, name: str, section: str) -> str:
    """The page with the section between its markers replaced, or appended if the page has none."""
    start = f"<!-- benchmark: {name} -->\n"
    end = "\n<!-- end -->\n"
    before, _, rest = page.partition(start)
    _, _, after = rest.partition(end)
    return before + start + section + end + after


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--english", metavar="FILE", help="labeled English file")
    parser.add_argument(
        "--bangla", metavar="FILE", help="labeled Bangla file; its teacher starts from scratch"
    )
    parser.add_argument(
        "--teacher", metavar="DIR", help="pretrained English encoder; needed for --english"
    )
    parser.add_argument("--output_dir", metavar="DIR", type=Path, required=True)
    parser.add_argument("--seeds", metavar="INT", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--threads", metavar="INT", type=int, default=1)
    options = parser.parse_args(argv)
    if not options.english and not options.bangla:
        parser.error("neither --english nor --bangla is given, but at least one file is needed")
    if options.english and not options.teacher:
        parser.error("--english is given, but needs --teacher")
    return options


def main(argv: list[str] | None = None) -> None:
    """Run all recipes on the given files, print the tables, and write them to
    docs/benchmarks.md."""
    options = parse_arguments(argv)
    output_dir = options.output_dir
    common = ["--output_dir", str(output_dir), "--device", "cpu", "--overwrite"]
    pretrained = ["--teacher_path", str(options.teacher), "--teacher_epochs", "3"]
    files = (
        ("English", options.english, ENGLISH, [*common, *pretrained]),
        ("Bangla", options.bangla, BANGLA, common),
    )
    for name, path, recipes, words in files:
        if path is None:
            continue
        peers_dir = output_dir / f"peers_{name}"
        section = make_section(name, recipes, ["--dataset_path", path, *words], peers_dir, options)
        print(section, flush=True)
        page = replace_section(PAGE.read_text(encoding="utf-8"), name, section)
        PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
