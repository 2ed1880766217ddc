"""The command line: every option declared once, every error at once, and no torch for `--help`."""

import re
import subprocess
import sys
from dataclasses import replace

import pytest

from compression_config import GROUPS, OPTIONS, PIPELINES, Options, as_record
from runtime.command_line import build_parser, option_table, parse_options
from runtime.errors import UserError


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


def test_every_option_is_in_help_once_and_in_one_of_at_most_ten_groups():
    text = build_parser().format_help()
    assert set(OPTIONS) == set(as_record(Options()))
    assert sorted(re.findall(r"^  --(\w+)", text, re.M)) == sorted([*OPTIONS, "version"])
    assert sum(option_table(group).count("| `--") for group in GROUPS) == len(OPTIONS)
    assert {declared.group for declared in OPTIONS.values()} == set(GROUPS) and len(GROUPS) == 10


def test_a_list_option_and_an_optional_one_take_their_types_from_the_annotation():
    assert (OPTIONS["seeds"].kind, OPTIONS["seeds"].is_list) == (int, True)
    assert (OPTIONS["lr"].kind, OPTIONS["lr"].is_list) == (float, False)
    assert (OPTIONS["quiet"].kind, OPTIONS["student_path"].kind) == (bool, str)


@pytest.mark.parametrize("word", ["--prune_scope", "--prune_scope=row", "--kd_hidden_weight"])
def test_a_removed_option_names_its_replacement(word):
    with pytest.raises(UserError, match=f"{word.partition('=')[0]} was removed: .{{20,}}"):
        parse_options([word])


def test_a_config_file_of_an_earlier_version_may_have_removed_options_at_their_defaults(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("batch: 16\nprune_scope: row\nkd_relation_weight: 1.0\n")
    assert parse_options(["--config", str(path)]).batch == 16
    path.write_text("prune_scope: global\n")
    with pytest.raises(UserError, match="--prune_scope was removed"):
        parse_options(["--config", str(path)])


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
        "--epochs is x, but must be an integer",
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


def test_a_stage_is_given_only_the_options_that_it_reads():
    from experiments.plan import STAGES

    options = replace(parse_options([]), student_path="teacher:2")
    for stage in STAGES:
        selected = stage.selected_options(options)
        assert set(vars(selected)) == set(stage.options)
        with pytest.raises(AttributeError):
            _ = selected.dataset_path
    named = {name for stages in PIPELINES.values() for name in stages}
    assert named < {stage.name for stage in STAGES}


def test_choices_equal_the_functions_behind_them():
    from pruning import SCORERS
    from quantization import QUANTIZERS

    choices = {name: declared.choices for name, declared in OPTIONS.items()}
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


def test_two_dashes_as_a_value_are_a_value():
    with pytest.raises(UserError, match="--accumulate is --, but must be an integer"):
        parse_options(["--accumulate=--"])
    assert parse_options(["--text_column=--"]).text_column == "--"
    assert parse_options(["--label_columns=--"]).label_columns == ("--",)
    assert parse_options(["--run_ablation"]).run_ablation == tuple(PIPELINES)
