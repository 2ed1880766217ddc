"""Our recipes against what a user would pick instead, on real files: writes docs/benchmarks.md.

    python scripts/benchmark.py --english FILE --bangla FILE --teacher DIR --output_dir OUT [--seeds 1 2 3]

Quality is measured on the test split of every seed; finished stages in OUT are taken over. Bytes and times are those of
the first seed; all forms of a file are timed in one run, in turn, on one thread, against the fp32 teacher in torch.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from compression_config import Options
from runtime.command_line import parse_options  # noqa: E402

PAGE = ROOT / "docs" / "benchmarks.md"
LEARN = "--lr 1e-4 --kd_alpha 0.9"
ENGLISH = {  # recipe -> options; fixed on validation beforehand
    "teacher": "--pipeline baseline --export all",
    "3 layers": f"--pipeline kd_only --student_path teacher:3 {LEARN} --epochs 5 --export all",
    "2 layers": f"--pipeline kd_only --student_path teacher:2 {LEARN} --epochs 5 --export all",
    "small": f"--pipeline kd_only --student_path teacher:3 --ffn_width 384 --trim_vocab 5500 {LEARN} --augment 2 "
    "--epochs 7 --early_stopping_patience 7 --export all",
}
BANGLA = {
    "teacher": "--pipeline baseline --export all",
    "2 layers": "--pipeline kd_only --student_path teacher:2 --epochs 5 --kd_baseline --export all",
    "small": "--pipeline kd_only --student_path teacher:2 --ffn_width 256 --trim_vocab 4000 --epochs 5 --augment 2 "
    "--export all",
}
ON_ALL_SEEDS = ("small",)  # the other recipes and the peers on the first seed alone
Rows = dict[str, dict[str, Any]]  # "recipe, form" -> row of the results


def write_bfloat16(teacher: Path, out: Path) -> None:
    """The teacher as torch computes it in bfloat16."""
    import torch
    from transformers import AutoModelForSequenceClassification

    AutoModelForSequenceClassification.from_pretrained(
        teacher, dtype=torch.bfloat16
    ).save_pretrained(out)


def run(argv: list[str]) -> Any:
    """The finished chain of one run, without times."""
    from experiments.experiment import open_experiments

    with open_experiments([parse_options(argv)]) as (experiment,):
        (chain,) = experiment.chains
        chain.run()
        for row in chain.rows.values():
            row["compression_ratio"] = chain.rows["teacher"]["bytes"] / row["bytes"]
    return chain


def write_peers(teacher: Path, texts: list[str], folder: Path) -> dict[str, Any]:
    """What a user would pick instead, by name: NNCF is calibrated on 300 texts, its own number."""
    from peers import plain_dynamic, plain_nncf

    from engines.engine import ModelFormat, tokenizer_files
    from engines.graphs import Calibration, write_onnx

    shutil.rmtree(folder, ignore_errors=True)
    for name in ("onnx", "openvino"):
        (folder / name).mkdir(parents=True)
    for path in [teacher / "config.json", *tokenizer_files(teacher)]:
        shutil.copy2(path, folder)
    with tempfile.TemporaryDirectory() as place:
        source = Path(place) / "model.onnx"
        write_onnx(teacher, source)
        plain_dynamic(source, folder / "onnx" / "model.onnx")
        plain_nncf(
            source, folder / "openvino" / "model.xml", Calibration(teacher, texts[:300], 128)
        )
    write_bfloat16(teacher, folder)
    return {
        name: ModelFormat(name, folder, served)
        for name, served in (
            ("teacher, quantize_dynamic", "onnx"),
            ("teacher, nncf.quantize", "openvino"),
            ("teacher, torch bf16", "torch"),
        )
    }


def add_peers(chain: Any, folder: Path, rows: Rows, forms: dict[str, Any]) -> None:
    """Make, evaluate and add what a user would pick instead."""
    from evaluation import evaluate

    peers = write_peers(chain.directory / "teacher", chain.splits["train"][:300]["text"], folder)
    test, reference = (
        chain.directory / name for name in ("splits/test.parquet", "predictions/teacher.parquet")
    )
    for name, form in peers.items():
        forms[name] = form
        rows[name] = evaluate(
            form,
            test,
            chain.task,
            Options(device="cpu"),
            reference,
            folder / f"{form.engine}.parquet",
        )
        rows[name]["compression_ratio"] = chain.rows["teacher"]["bytes"] / rows[name]["bytes"]


def one_seed(
    recipes: dict[str, str], common: list[str], folder: Path, seed: int, peers: bool
) -> tuple[Rows, dict[str, Any], Any]:
    """Rows and forms of the recipes on one split, and of the peers; `teacher` is the row of the fp32 teacher."""
    rows: Rows = {}
    forms: dict[str, Any] = {}
    for recipe, options in recipes.items():
        name = f"{recipe.replace(' ', '_')}_s{seed}"
        chain = run([*common, *options.split(), "--seed", str(seed), "--experiment", name])
        made = {form.name: form for form in chain.forms}
        for stage, row in chain.rows.items():
            if stage in ("start", "trimmed", "narrowed") or (
                stage == "teacher" and recipe != "teacher"
            ):
                continue
            known = {
                "linear": "TF-IDF, logistic regression",
                "teacher": "teacher, torch fp32",
                "student_plain": f"{recipe} fine-tuned without a teacher",
            }
            label = known.get(stage, f"{recipe}, {'torch fp32' if stage == 'student' else stage}")
            rows[label], forms[label] = row, made[stage]
        rows["teacher"] = chain.rows["teacher"]
    if peers:
        add_peers(chain, folder / f"peers_s{seed}", rows, forms)
    return rows, forms, chain


def timed(forms: dict[str, Any], texts: list[str], threads: int) -> dict[str, dict[str, Any]]:
    """Form -> its times, all measured in turn."""
    from dataclasses import replace

    import benchmark

    benchmark.start_up = lambda *_: {}  # neither loading nor memory is on the page
    named = [replace(form, name=name) for name, form in forms.items()]
    return benchmark.measure(named, texts, 128, "cpu", 0, threads, ("latency_ms_p50", "throughput"))


def summary(seeds: list[Rows], times: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """A line for each form: figures of the first seed's file, means over the seeds, and whether it is on the front."""
    from metrics import interval_of_mean

    base, lines = times["teacher, torch fp32"], []
    for name, first in seeds[0].items():
        if name == "teacher":  # the reference of every seed, under one name
            continue
        rows = [rows[name] for rows in seeds if name in rows]
        mean = {
            key: sum(row[key] for row in rows) / len(rows) for key in ("macro_f1", "delta_macro_f1")
        }
        low, high = first["delta_macro_f1_low"], first["delta_macro_f1_high"]
        if len(rows) > 1:
            _, _, low, high = interval_of_mean([row["delta_macro_f1"] for row in rows], 0.2 / 0.7)
        ms, texts_s = times[name]["latency_ms_p50"], times[name]["throughput"]
        teachers = [known["teacher"]["macro_f1"] for known in seeds if name in known]
        lines.append(
            {
                "name": name,
                "mb": first["size_mb"],
                "smaller": first["compression_ratio"],
                "ms": ms,
                "faster": base["latency_ms_p50"] / ms,
                "texts_s": texts_s,
                "f1": mean["macro_f1"],
                "delta": mean["delta_macro_f1"],
                "low": low,
                "high": high,
                "relative": mean["delta_macro_f1"] * len(rows) / sum(teachers),
                "steady": times[name]["steady"],
            }
        )
    for line in lines:
        better = [
            all(other[key] <= line[key] for key in ("mb", "ms")) and other["f1"] >= line["f1"]
            for other in lines
            if other is not line
        ]
        line["front"] = not any(better)
    return sorted(lines, key=lambda line: line["mb"])


def markdown(lines: list[dict[str, Any]]) -> str:
    """The lines as a table; those on the Pareto front of bytes, time and macro-F1 are bold."""
    head = [
        "recipe, form",
        "MB",
        "smaller",
        "ms",
        "faster",
        "texts/s",
        "macro-F1",
        "vs teacher (points)",
        "relative",
    ]
    text = [f"| {' | '.join(head)} |", "|---" + "|--:" * (len(head) - 1) + "|"]
    for line in lines:
        name = f"**{line['name']}**" if line["front"] else line["name"]
        lost = f"{100 * line['delta']:+.2f} [{100 * line['low']:+.1f}, {100 * line['high']:+.1f}]"
        text.append(
            f"| {name}{'' if line['steady'] else ' *'} | {line['mb']:.2f} | {line['smaller']:.1f}x | "
            f"{line['ms']:.2f} | {line['faster']:.1f}x | {line['texts_s']:.0f} | {line['f1']:.4f} | {lost} | "
            f"{100 * line['relative']:+.1f} % |"
        )
    return "\n".join(text)


def table_of(
    name: str, recipes: dict[str, str], common: list[str], folder: Path, options: argparse.Namespace
) -> str:
    """The section of one file."""
    made = []
    for seed in options.seeds:
        wanted = {
            recipe: text for recipe, text in recipes.items() if not made or recipe in ON_ALL_SEEDS
        }
        made.append(one_seed(wanted, common, folder, seed, peers=not made))
    texts = made[0][2].splits["test"][:]["text"]
    times = timed(made[0][1], texts, options.threads)
    commands = "\n".join(f"- {recipe}: `{text}`" for recipe, text in recipes.items())
    seeds = f"Seed {options.seeds[0]}; `{'`, `'.join(ON_ALL_SEEDS)}` on seeds {' '.join(map(str, options.seeds))}."
    return f"## {name}\n\n{seeds}\n\n{commands}\n\n" + markdown(
        summary([rows for rows, _, _ in made], times)
    )


def main() -> None:
    """Run all recipes on the files that are given, print the tables, and put them into docs/benchmarks.md."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--english", help="labelled English file, split by the run itself")
    parser.add_argument("--bangla", help="labelled Bangla file; its teacher is made from scratch")
    parser.add_argument("--teacher", help="directory of the pretrained English encoder")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    place = ["--output_dir", str(options.output_dir), "--device", "cpu", "--overwrite"]
    files = {
        "English": (
            options.english,
            ENGLISH,
            ["--teacher_path", str(options.teacher), "--teacher_epochs", "3"],
        ),
        "Bangla": (options.bangla, BANGLA, []),
    }
    for name, (path, recipes, teacher) in files.items():
        if path is None:
            continue
        common = ["--dataset_path", path, *teacher, *place]
        section = table_of(name, recipes, common, options.output_dir / f"peers_{name}", options)
        print(section, flush=True)
        page = PAGE.read_text(encoding="utf-8")
        start, end = f"<!-- benchmark: {name} -->\n", "\n<!-- end -->\n"
        before, _, rest = page.partition(start)
        PAGE.write_text(before + start + section + end + rest.partition(end)[2], encoding="utf-8")


if __name__ == "__main__":
    main()
