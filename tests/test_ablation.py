"""Several pipelines in one table: every distinct stage, evaluation and timing once, interrupted
or not."""

import csv
import io
import json
from collections import Counter
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import pytest
from measuring import quick_measuring

import report
from compression_config import PIPELINES
from engines import latency
from evaluation import evaluate
from experiments import stages
from reporting import results
from runtime.command_line import expand_runs, parse_options
from runtime.errors import UserError

SMALL = (
    "--teacher_path scratch:1x64 --student_path teacher:1 --teacher_epochs 2 --epochs 1 "
    "--fine_tune_epochs 1 --max_length 32 --device cpu"
).split()
MADE = {
    "teacher": 1,
    "linear": 1,
    "outputs/train": 1,
    "outputs/validation": 1,
    "distill": 1,
    "prune": 2,
    "quantize": 4,
}
FORMATS = 9  # linear, teacher, student, two pruned, four in fp16


@pytest.fixture(scope="module")
def ablation(tiny_csv, tmp_path_factory, in_measuring_process):
    """All eight pipelines, killed while the third is pruned and begun again; what was made,
    measured and printed."""
    from main import main

    output, write_record, measure = (
        tmp_path_factory.mktemp("ablation"),
        stages.write_record,
        latency.measure,
    )
    made, evaluated, timed, codes = [], [], [], []

    def note_made(directory, **entries):
        if not codes and entries["stage"] == "prune":
            raise KeyboardInterrupt
        made.append((entries["stage"], entries["fingerprint"]))
        write_record(directory, **entries)

    def note_evaluated(function, *arguments):
        if function is evaluate:
            evaluated.append(arguments[0].name)
        return in_measuring_process(function, *arguments)

    def note_timed(formats, *arguments, **settings):
        timed.append(len(formats))
        return measure(formats, *arguments, **settings, kinds=("latency_ms_p50", "throughput"))

    argv = ["--run_ablation", "--dataset_path", str(tiny_csv), "--output_dir", str(output), *SMALL]
    with quick_measuring(note_evaluated), pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "write_record", note_made)
        patch.setattr(latency, "measure", note_timed)
        codes.append(main(argv))
        shipped = (output / "compressed_models").exists()
        with redirect_stdout(io.StringIO()) as printed:
            codes.append(main(argv))
    (folder,) = (output / "compressed_models").glob("ablation_tiny_*")
    document = json.loads((folder / "results_ablation.json").read_text())
    rows = {}
    for name in document["experiments"]:
        rows[name] = results.read_rows(str(folder.with_name(name)))
    return SimpleNamespace(
        argv=argv,
        output=output,
        made=made,
        evaluated=evaluated,
        timed=timed,
        codes=codes,
        shipped=shipped,
        printed=printed.getvalue(),
        folder=folder,
        document=document,
        results=rows,
    )


def test_an_interrupted_ablation_resumes_and_makes_each_distinct_stage_once(ablation):
    assert ablation.codes == [130, 0] and not ablation.shipped
    assert len(set(ablation.made)) == len(ablation.made)
    assert Counter(name for name, _ in ablation.made) == MADE
    teachers = list((ablation.output / "models").glob("*/teacher/model.safetensors"))
    assert len(teachers) == 8 and len({path.stat().st_ino for path in teachers}) == 1
    assert list(ablation.output.rglob("*.partial")) == []


def test_equal_formats_are_evaluated_once_and_timed_once(ablation):
    assert len(ablation.evaluated) == FORMATS and ablation.timed == [FORMATS]
    times = {}
    for row in (row for rows in ablation.results.values() for row in rows):
        fingerprint = json.loads((Path(row["directory"]) / "stage.json").read_text())["fingerprint"]
        times.setdefault((fingerprint, row["bytes"]), set()).add(
            (row["latency_ms_p50"], row["throughput"])
        )
    assert len(times) == FORMATS and all(len(found) == 1 for found in times.values())


def test_the_rows_are_those_of_the_experiments(ablation):
    rows = ablation.document["rows"]
    assert [(row["pipeline"], row["stage"]) for row in rows] == [
        ("reference", "linear"),
        ("baseline", "teacher"),
        ("kd_only", "student"),
        ("prune_only", "pruned"),
        ("quant_only", "fp16"),
        ("kd_prune", "pruned"),
        ("kd_quant", "fp16"),
        ("prune_quant", "fp16"),
        ("kd_prune_quant", "fp16"),
    ]
    for row in rows:
        own = {name: value for name, value in row.items() if name not in ("pipeline", "experiment")}
        assert own in ablation.results[row["experiment"]]
        assert row["pipeline"] == "reference" or row["experiment"].startswith(
            f"{row['pipeline']}_tiny_"
        )
    assert {tuple(row["stage"] for row in found) for found in ablation.results.values()} >= {
        ("linear", "teacher"),
        ("linear", "teacher", "student", "pruned", "fp16"),
    }
    assert (
        "pipeline" not in ablation.document["config"] and ablation.document["config"]["epochs"] == 1
    )


def test_the_table_is_printed_written_and_printed_again(ablation, capsys):
    lines = ablation.printed.splitlines()
    assert lines[0].split()[:4] == ["Pipeline", "Format", "Size", "(MB)"] and len(lines) == 2 + 9
    for line, row in zip(lines[2:], ablation.document["rows"], strict=True):
        assert (
            line.split()[:2] == [row["pipeline"], row["stage"]]
            and f" {row['macro_f1']:.4f} " in line
        )
    with (ablation.folder / "results_ablation.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["pipeline"] for row in table] == ["reference", *PIPELINES]
    assert [float(row["macro_f1"]) for row in table] == [
        row["macro_f1"] for row in ablation.document["rows"]
    ]
    assert report.main([str(ablation.folder)]) == 0
    assert capsys.readouterr().out == ablation.printed


def test_a_pipeline_run_separately_is_the_same_experiment(ablation, run_main):
    before = sorted((ablation.output / "models").iterdir())
    assert run_main(["--pipeline", "quant_only", *ablation.argv[1:]]) == 0
    assert sorted((ablation.output / "models").iterdir()) == before


def test_seeds_give_mean_rows(run_main, tiny_csv, tmp_path, capsys):
    argv = [
        "--dataset_path",
        str(tiny_csv),
        "--output_dir",
        str(tmp_path),
        "--seeds",
        "1",
        "2",
        *SMALL,
    ]
    assert run_main(["--run_ablation", "quant_only", *argv]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[2:]] == [
        ["reference", "linear"],
        ["reference", "teacher"],
        ["quant_only", "fp16"],
    ]
    assert all(" +- " in line for line in lines[2:])
    (folder,) = (tmp_path / "compressed_models").glob("ablation_*")
    rows = [row for row in results.read_rows(str(folder)) if row["stage"] == "fp16"]
    assert [row["repeat"] for row in rows] == ["seed 1", "seed 2", "mean"]
    assert rows[2]["macro_f1"] == pytest.approx((rows[0]["macro_f1"] + rows[1]["macro_f1"]) / 2)


def test_without_names_all_eight_run_else_those_named_in_that_order():
    assert [one.pipeline for one in expand_runs(parse_options(["--run_ablation"]))] == list(
        PIPELINES
    )
    runs = expand_runs(parse_options(["--run_ablation", "kd_quant", "baseline", "--batch", "8"]))
    assert [(one.pipeline, one.batch, one.run_ablation) for one in runs] == [
        ("kd_quant", 8, None),
        ("baseline", 8, None),
    ]
    assert expand_runs(parse_options(["--pipeline", "kd_quant"])) == [
        parse_options(["--pipeline", "kd_quant"])
    ]


def test_an_option_that_some_pipelines_have_no_use_for_is_left_out_of_them_alone():
    argv = ["--kd_baseline", "--ffn_width", "0.5", "--augment", "2", "--max_f1_drop", "0.01"]
    options = parse_options(["--run_ablation", "baseline", "prune_only", "kd_quant", *argv])
    given = [
        (one.kd_baseline, one.ffn_width, one.augment, one.max_f1_drop)
        for one in expand_runs(options)
    ]
    assert given == [(False, None, 0, None), (False, 0.5, 2, None), (True, 0.5, 2, 0.01)]
    with pytest.raises(UserError) as caught:
        parse_options(["--run_ablation", "baseline", "prune_only", "--kd_baseline"])
    assert caught.value.lines == (
        "--kd_baseline is given, but --pipeline baseline trains no student",
        "--kd_baseline is given, but --pipeline prune_only trains no student",
    )


@pytest.mark.parametrize(
    "words, line",
    [
        (
            "--pipeline kd_only --run_ablation",
            "--run_ablation and --pipeline are given, but an ablation runs the pipelines named "
            "after --run_ablation",
        ),
        (
            "--run_ablation baseline --experiment mine",
            "--run_ablation and --experiment are given, but each pipeline of an "
            "ablation is an experiment with its own name",
        ),
        (
            "--run_ablation kd_only baseline kd_only",
            "--run_ablation is kd_only baseline kd_only, but each pipeline must be given once",
        ),
        ("--run_ablation kd", f"--run_ablation is kd, but must be one of {', '.join(PIPELINES)}"),
        (
            "--run_ablation --prune_schedule cubic --fine_tune_epochs 0",
            "--prune_schedule is cubic with --fine_tune_epochs 0, but it prunes during recovery",
        ),
    ],
)
def test_bad_combinations_are_refused_in_one_line(words, line, tmp_path, capsys):
    from main import main

    assert main([*words.split(), "--output_dir", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", f"main.py: error: {line}\n") and not (
        tmp_path / "out"
    ).exists()


def test_the_command_line_wins_over_the_pipeline_of_a_file(tmp_path):
    (tmp_path / "run.yaml").write_text("pipeline: kd_only\nbatch: 8\n")
    options = parse_options(
        ["--config", str(tmp_path / "run.yaml"), "--run_ablation", "baseline", "quant_only"]
    )
    assert [(one.pipeline, one.batch) for one in expand_runs(options)] == [
        ("baseline", 8),
        ("quant_only", 8),
    ]
    (tmp_path / "run.yaml").write_text("run_ablation: []\nexport: onnx\n")
    assert len(expand_runs(parse_options(["--config", str(tmp_path / "run.yaml")]))) == 8
