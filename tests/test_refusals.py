"""Every user error: one line each, all at once, exit code 2, nothing written, before any model
is loaded."""

import gzip
import json
import os
import random
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_models import save_tokenizer
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    T5Config,
)

from compression_config import OPTIONS, Options, as_record
from runtime.command_line import config_text, parse_options
from runtime.errors import UserError

TEXTS = [f"comment number {i}" for i in range(60)]


def csv_lines(*rows: str) -> str:
    return "\n".join(["text,label", *rows]) + "\n"


BALANCED = csv_lines(*(f"{text},{i % 2}" for i, text in enumerate(TEXTS)))


@pytest.fixture
def refused(tmp_path, capsys, monkeypatch, in_measuring_process):
    """Runs main with a file of the given content; the lines of its refusal."""
    from experiments import stages
    from main import main

    monkeypatch.setattr(
        stages.StageRunner, "run_step", lambda *_: pytest.fail("a stage was started")
    )

    def run(argv: list[str], content: str | bytes | None = BALANCED) -> list[str]:
        path, out = tmp_path / "file.csv", tmp_path / "out"
        if content is not None:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        code = main(["--dataset_path", str(path), "--output_dir", str(out), *argv])
        printed = capsys.readouterr()
        lines = [line for line in printed.err.splitlines() if line.startswith("main.py: error: ")]
        assert (
            code == 2
            and lines
            and printed.out == ""
            and "Traceback" not in printed.err
            and not out.exists()
        )
        return lines

    return run


@pytest.mark.parametrize(
    "content, said",
    [
        (None, "there is no such file"),
        ("", "that file is empty"),
        ("text,label\n", "has no rows"),
        (csv_lines(*(f"{text},1" for text in TEXTS)), "with 1 values, but needs 2"),
        (
            csv_lines(*(f"{text},{int(i == 0)}" for i, text in enumerate(TEXTS))),
            "label 1 has 1 rows, but none in the validation split of 6 rows; add rows with it",
        ),
        (
            csv_lines(*(f"{text if i > 30 else ''},{i % 2}" for i, text in enumerate(TEXTS))),
            "lack a text or a label",
        ),
        (bytes(range(256)) * 40, "is not text: a NUL byte at offset 0"),
        (b"\x89PNG\r\n\x1a\n" + random.Random(0).randbytes(3000), "it is an image"),
        (gzip.compress(BALANCED.encode()), "it is gzip data (name it .gz)"),
        (BALANCED + '"cut in the middle of a quo', "line 62 has a quote that is never closed"),
    ],
)
def test_a_bad_file_gives_one_line(content, said, refused):
    lines = refused(
        ["--label_columns", "label", "--text_column", "text"] if content else [], content
    )
    assert len(lines) == 1 and said in lines[0] and "--" in lines[0]


def test_a_path_that_is_not_utf_8_is_refused_first(refused):
    (line,) = refused(["--dataset_path", "caf\udce9.csv"])
    assert line.endswith("--dataset_path is caf\\udce9.csv, but must be UTF-8")


def test_a_directory_is_no_file(refused, tmp_path):
    (line,) = refused(["--dataset_path", str(tmp_path)])
    assert "that is a directory" in line


def test_a_pipe_a_path_without_permission_and_a_long_path_are_refused(
    refused, tmp_path, monkeypatch
):
    os.mkfifo(tmp_path / "pipe.csv")
    (line,) = refused(["--dataset_path", str(tmp_path / "pipe.csv")])
    assert "that is a pipe or a device, which can be read only once" in line
    (line,) = refused(["--dataset_path", str(tmp_path / ("x" * 300))])
    assert "but it cannot be read: File name too long" in line
    stat = os.stat

    def closed(path, **options):
        if str(path).endswith("closed.csv"):
            raise PermissionError(13, "Permission denied")
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", closed)
    (line,) = refused(["--validation_path", str(tmp_path / "closed.csv")])
    assert line.endswith("closed.csv, but it cannot be read: Permission denied")


def test_a_wrong_column_lists_those_that_exist(refused):
    (line,) = refused(["--text_column", "comment"])
    assert line.endswith("--text_column is comment, but the file has the columns text, label")
    (line,) = refused(["--label_columns", "hate"])
    assert "--label_columns is hate" in line and "text, label" in line
    lines = refused(["--text_column", "a", "--label_columns", "label", "b", "--group_column", "c"])
    assert [line.split("error: ")[1].split(", but")[0] for line in lines] == [
        "--text_column is a",
        "--group_column is c",
        "--label_columns is b",
    ]


def test_several_label_columns_must_contain_only_0_and_1(refused):
    content = "text,a,b\n" + "".join(f"{text},{i % 2},{i % 3}\n" for i, text in enumerate(TEXTS))
    (line,) = refused(["--label_columns", "a", "b"], content)
    assert "--label_columns includes b" in line and "0 and 1" in line


def test_several_errors_come_together(refused, tmp_path):
    lines = refused(
        ["--batch", "0", "--kd_temperature", "0", "--reuse", str(tmp_path / "none")], None
    )
    assert len(lines) == 4
    lines = refused(
        [
            "--teacher_path",
            str(tmp_path / "no-model"),
            "--text_column",
            "comment",
            "--student_path",
            "scratch:2x65",
        ]
    )
    assert len(lines) == 3


@pytest.mark.parametrize(
    "words, said",
    [
        ("--prune_sparsity 1.0", "--prune_sparsity is 1.0, but must be in [0, 1)"),
        ("--prune_sparsity -0.1", "--prune_sparsity is -0.1"),
        ("--prune_sparsity nan", "--prune_sparsity is nan"),
        ("--kd_temperature 0", "--kd_temperature is 0, but must be above 0"),
        ("--validation_fraction 0.6 --test_fraction 0.5", "add up to 1.1"),
        ("--batch 0", "--batch is 0, but must be at least 1"),
        (
            "--teacher_path no/such-model",
            "--teacher_path is no/such-model, neither a local directory nor a model",
        ),
        ("--teacher_epochs 0", "--teacher_epochs is 0, but scratch:4x256 has no fine-tuned head"),
        (
            "--teacher_path scratch:6x64 --student_path teacher:9",
            "--student_path is teacher:9, but the teacher has 6",
        ),
        ("--teacher_path scratch:6x64 --student_path teacher:2,1", "ascending order"),
        ("--teacher_path scratch:six", "must read scratch:LAYERSxHIDDEN"),
        ("--teacher_path teacher:2", "only --student_path takes teacher:N"),
        ("--device cuda", "--device is cuda, but torch finds no CUDA device"),
        (
            "--trim_vocab 299",
            "--trim_vocab is 299, but must be none, used, auto or an integer of at least 300",
        ),
        ("--trim_vocab some", "--trim_vocab is some, but must be none, used, auto"),
        (
            "--trim_vocab auto --kd_method relation",
            "uses different token ids from the teacher; use logit",
        ),
        (
            "--ffn_width 1.5",
            "--ffn_width is 1.5, but must be a fraction in (0, 1) or an integer of at least 8",
        ),
        ("--ffn_width 1", "--ffn_width is 1, but must be a fraction in (0, 1)"),
        ("--ffn_width 0", "--ffn_width is 0, but must be a fraction"),
        ("--ffn_width 2048", "--ffn_width is 2048, but scratch:4x256 has 1024 neurons per layer"),
        (
            "--ffn_width 300 --student_path scratch:1x64",
            "--ffn_width is 300, but scratch:1x64 has 256 neurons per layer",
        ),
        (
            "--ffn_width 0.5 --pipeline quant_only",
            "has no training afterwards to recover the loss",
        ),
        (
            "--ffn_width 0.5 --pipeline prune_only --fine_tune_epochs 0",
            "has no training afterwards",
        ),
        ("--prune_scope global", "--prune_scope was removed: weights are always compared within"),
        ("--prune_schedule cubic --fine_tune_epochs 0", "it prunes during recovery"),
        (
            "--run_ablation baseline kd_only --teacher_path scratch:6x64 --student_path teacher:9",
            "--student_path is teacher:9, but the teacher has 6",
        ),
        (
            "--run_ablation baseline prune_only --ffn_width 2048",
            "--ffn_width is 2048, but scratch:4x256 has 1024 neurons",
        ),
        ("--precision fp16 --device cpu", "--precision is fp16, but training in fp16 needs a GPU"),
    ],
)
def test_bad_options_are_refused(words, said, refused):
    if "cuda" in words and __import__("torch").cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert any(said in line for line in refused(words.split()))


def save_bert(folder: Path, labels: tuple[str, ...] = ("0", "1")) -> Path:
    config = BertConfig(
        vocab_size=200,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=256,
        id2label=dict(enumerate(labels)),
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    save_tokenizer("bert", folder)
    return folder


def no_config(folder: Path) -> str:
    folder.mkdir()
    return "that directory has no config.json"


def pickle_only(folder: Path) -> str:
    (save_bert(folder) / "model.safetensors").rename(folder / "pytorch_model.bin")
    return "pickle files are refused"


def own_code(folder: Path) -> str:
    config = json.loads((save_bert(folder) / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"auto_map": {"AutoModel": "modeling.Mine"}})
    )
    return "trust_remote_code"


def torn_config(folder: Path) -> str:
    (save_bert(folder) / "config.json").write_text('{"model_type": "be')
    return "its config.json cannot be read"


def decoder(folder: Path) -> str:
    save_bert(folder)
    GPT2ForSequenceClassification(
        GPT2Config(vocab_size=30, n_embd=16, n_layer=1, n_head=2)
    ).save_pretrained(folder)
    return "its model_type gpt2 is not supported"


def encoder_decoder(folder: Path) -> str:
    save_bert(folder)
    T5Config().save_pretrained(folder)
    return "its model_type t5 is not supported"


@pytest.mark.parametrize(
    "make", [no_config, pickle_only, own_code, torn_config, decoder, encoder_decoder]
)
def test_a_directory_that_is_no_usable_encoder_is_refused(make, refused, tmp_path):
    said = make(tmp_path / "model")
    (line,) = refused(["--teacher_path", str(tmp_path / "model"), "--student_path", "scratch:1x64"])
    assert said in line


def test_a_model_that_reads_less_than_max_length_is_refused(refused, tmp_path):
    (line,) = refused(
        [
            "--teacher_path",
            str(save_bert(tmp_path / "model")),
            "--student_path",
            "scratch:1x64",
            "--max_length",
            "512",
        ]
    )
    assert "--max_length is 512, but" in line and "at most 256 tokens" in line


def test_a_finished_teacher_with_other_labels_is_refused(refused, tmp_path):
    folder = save_bert(tmp_path / "model", ("spam", "ham"))
    (line,) = refused(
        ["--teacher_path", str(folder), "--student_path", "teacher:1", "--teacher_epochs", "0"]
    )
    assert "predicts spam, ham and the file has 0, 1" in line


@pytest.mark.parametrize(
    "text, said",
    [
        ("bach: 16", "'bach' is not an option"),
        ("batch: sixteen", "--batch is sixteen, but must be an integer"),
        ("batch: [1, 2]", "batch must be one value"),
        ("batch: 1\nbatch: 2", "batch is given twice"),
        ("just words", "must contain lines such as"),
        ("batch: [1", "cannot be read as YAML"),
        ("batch: " + "[" * 3000, "cannot be read as YAML: it is nested too deeply"),
        ("? [batch, seed]\n: 1", "its keys must be names of options"),
        ("{batch: 1}: 2", "its keys must be names of options"),
        ("config: other.yaml", "'config' is not an option of that file"),
        ("overwrite: maybe", "--overwrite is maybe, but must be true or false"),
    ],
)
def test_a_bad_config_file_is_refused(text, said, refused, tmp_path):
    (tmp_path / "run.yaml").write_text(text)
    (line,) = refused(["--config", str(tmp_path / "run.yaml")])
    assert said in line


def test_an_output_folder_that_cannot_be_written_is_refused(refused, tmp_path):
    (tmp_path / "taken").write_text("a file")
    (line,) = refused(["--output_dir", str(tmp_path / "taken" / "deeper")])
    assert "--output_dir" in line and "is not a writable directory" in line


@pytest.mark.parametrize("name", ["torch", "transformers"])
def test_old_libraries_are_refused(name, refused, monkeypatch):
    from runtime import errors

    monkeypatch.setattr(errors, "version", lambda asked: "1.13.1" if asked == name else "99.0")
    (line,) = refused([])
    assert f"{name} is 1.13.1, but must be at least" in line


def words_for(name: str) -> st.SearchStrategy[list[str]]:
    """A flag with a value that may or may not be allowed."""
    declared = OPTIONS[name]
    if declared.kind is bool:
        return st.just([f"--{name}"])
    any_text = st.text(
        st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8
    )
    values = st.one_of(
        st.sampled_from(declared.choices or ("x",)),
        st.integers(-3, 600).map(str),
        st.floats().map(str),
        any_text,
    )
    return values.map(lambda value: [f"--{name}={value}"])


EXAMPLES = int(os.environ.get("PROPERTY_EXAMPLES", "300"))
COMMAND_LINES = st.lists(
    st.sampled_from(sorted(set(OPTIONS) - {"config"})).flatmap(words_for), max_size=6
).map(lambda parts: [word for part in parts for word in part])


def given_again(options: Options) -> dict[str, object]:
    """What gives the same options when it is all given: an ablation names its pipelines itself."""
    left_out = {"pipeline"} if options.run_ablation else set()
    return {
        name: value
        for name, value in as_record(options).items()
        if value is not None and name not in left_out
    }


@settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None
)
@given(COMMAND_LINES)
def test_any_command_line_parses_to_options_that_print_back_or_names_a_flag(argv):
    try:
        options = parse_options(argv)
    except UserError as error:
        assert all("--" in line and "\n" not in line for line in error.lines)
        return
    printed = []
    for name, value in given_again(options).items():
        if isinstance(value, bool):
            printed += [f"--{name}"] if value else []
        else:
            printed += [
                f"--{name}={one}" for one in (value if isinstance(value, list) else [value])
            ]
    assert parse_options(printed) == options


@settings(
    max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None
)
@given(COMMAND_LINES)
def test_any_config_file_parses_to_the_same_options_or_names_a_flag(tmp_path_factory, argv):
    path = tmp_path_factory.getbasetemp() / "property.yaml"
    pairs = dict(word[2:].partition("=")[::2] for word in argv)
    flags = {name for name, declared in OPTIONS.items() if declared.kind is bool}
    record = {name: "true" if name in flags else value for name, value in pairs.items()}
    path.write_text(yaml.safe_dump(record, allow_unicode=True), encoding="utf-8")
    try:
        options = parse_options(["--config", str(path)])
    except UserError as error:
        assert all("--" in line and "\n" not in line for line in error.lines)
        return
    record = {name: value for name, value in given_again(options).items() if name != "config"}
    path.write_text(config_text(record), encoding="utf-8")
    assert parse_options(["--config", str(path)]) == options


def test_every_option_is_reached_by_the_property_tests():
    assert set(as_record(Options())) == set(OPTIONS)
