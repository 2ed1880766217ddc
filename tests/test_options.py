"""The command line: every knob declared once, every error at once, and no torch for `--help`."""

import re
import subprocess
import sys

import pytest

from compression_config import (
    OPTIONS,
    PIPELINES,
    Options,
    UserError,
    as_record,
    option_table,
    select,
)
from runtime.command_line import build_parser, parse_options


def test_defaults_are_the_documented_ones():
    options = parse_options([])
    assert (options.pipeline, options.teacher_path, options.batch) == (
        "kd_prune_quant",
        "scratch:4x256",
        32,
    )
    assert (options.teacher_epochs, options.epochs, options.fine_tune_epochs) == (5, 10, 3)
    assert (options.prune_method, options.prune_sparsity, options.quant_method) == (
        "magnitude",
        0.4,
        "fp16",
    )


def test_every_option_stands_in_help_once_and_in_one_group():
    text = build_parser().format_help()
    assert set(OPTIONS) == set(as_record(Options()))
    assert sorted(re.findall(r"^  --(\w+)", text, re.M)) == sorted(OPTIONS)
    assert sum(option_table(group).count("| `--") for group in OPTION_GROUPS) == len(OPTIONS)
    assert [name for name, (_, field) in OPTIONS.items() if field.metadata["main"]] == list(
        MAIN_FLAGS
    )


def test_values_are_converted():
    options = parse_options(
        ["--batch", "8", "--prune_sparsity", "0.5", "--label_columns", "a", "b"]
    )
    assert (
        options.batch == 8 and options.prune_sparsity == 0.5 and options.label_columns == ("a", "b")
    )


def test_all_errors_come_at_once_each_with_flag_value_and_rule():
    with pytest.raises(UserError) as caught:
        parse_options(
            [
                "--batch",
                "0",
                "--prune_sparsity",
                "nan",
                "--kd_temperature",
                "0",
                "--epochs",
                "x",
                "--quant_method",
                "int3",
                "--spam",
                "1",
            ]
        )
    assert caught.value.lines == (
        "unknown option --spam",
        "--batch is 0, but must be at least 1",
        "--prune_sparsity is nan, but must be in [0, 1)",
        "--kd_temperature is 0, but must be above 0",
        "--epochs is x, but must be a whole number",
        "--quant_method is int3, but must be one of fp16, dynamic, static, int4",
    )


@pytest.mark.parametrize(
    "words, said",
    [
        ("--prune_sparsity 1.0", "--prune_sparsity is 1.0, but must be in [0, 1)"),
        ("--prune_sparsity -0.1", "--prune_sparsity is -0.1, but must be in [0, 1)"),
        ("--validation_fraction 0.5 --test_fraction 0.5", "add up to 1"),
        ("--experiment ../up", "--experiment is ../up"),
        ("--pipeline kd", "--pipeline is kd, but must be one of"),
        ("spam", "unexpected argument 'spam'"),
    ],
)
def test_bad_values_are_refused(words, said):
    with pytest.raises(UserError) as caught:
        parse_options(words.split())
    assert said in str(caught.value)


def test_a_stage_sees_its_own_options_alone():
    from experiments.stages import STAGES

    for stage in STAGES.values():
        group = select(parse_options([]), stage.options)
        assert not hasattr(group, "pipeline") and not hasattr(group, "dataset_path")
    others = {"teacher", "linear", "plain", "tune", "start", "trim", "narrow", "qat", "export"}
    assert set(PIPELINES["kd_prune_quant"]) | others == set(STAGES)


def test_choices_equal_the_functions_behind_them():
    from pruning import SCORERS
    from quantization import QUANTIZERS

    choices = {name: field.metadata["choices"] for name, (_, field) in OPTIONS.items()}
    assert set(choices["prune_method"]) == set(SCORERS)
    assert set(choices["quant_method"]) == set(QUANTIZERS)
    assert len(choices["pipeline"]) == 8


def test_help_and_refusals_import_no_torch():
    code = (
        "import sys, main\ntry: main.main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'transformers', 'pandas', 'sklearn') if m in sys.modules])"
    )
    for words in (["--help"], ["--batch", "0"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True
        )
        assert done.stdout.splitlines()[-1] == "[]"


def test_a_bad_option_exits_with_2_one_line_and_nothing_written(tmp_path, capsys):
    from main import main

    assert main(["--batch", "0", "--output_dir", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr()
    assert (
        printed.out == ""
        and printed.err == "main.py: error: --batch is 0, but must be at least 1\n"
    )
    assert not (tmp_path / "out").exists()
