"""The pages say what was run: every command and example on them runs here, on tiny data and tiny
models."""

import csv
import io
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from transformers import (
    DistilBertConfig,
    DistilBertForSequenceClassification,
    ElectraConfig,
    ElectraForPreTraining,
    ElectraForSequenceClassification,
)

import benchmark
import evaluate
import inference
import report
from compression_config import GROUPS, OPTIONS
from encoders.scratch import train_wordpiece
from experiments.plan import STAGES

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
DOCS = {
    "TECHNICAL_DOCS",
    "benchmarks",
    "run_combinations",
    "PIPELINE_DOCUMENTATION",
    "compression_config",
    "data",
    "distillation",
    "evaluation",
    "export",
    "inference",
    "main",
    "pruning",
    "quantization",
    "report",
    "security",
    "log",
}
MOST = {
    "teacher_epochs": 1,
    "epochs": 1,
    "fine_tune_epochs": 1,
    "max_length": 32,
    "calibration_samples": 16,
}
NOT_RUN = (
    "pip install ",
    "python -m pytest ",
    "python3 -m venv ",
    ". .venv/bin/activate ",
    "ruff check ",
)
OTHER_COMMANDS = re.compile(
    r"python (report|benchmark|inference|evaluate|(?:scripts|benchmarks)/\w+)\.py[^`\n]*"
    r"|accelerate launch[^`]*?(main\.py|`)"
    r"|hf upload[^`\n]*"
)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.S | re.M)
LOOP = re.compile(r"^for (\w+) in (.*?); do\n(.*?)^done$", re.S | re.M)
GENERATED = re.compile(r"<!-- options: ([\w ]+) -->\n(.*?)<!-- end -->\n?", re.S)


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path) -> list[tuple[str, str]]:
    """(language, content) of every fenced block, in order."""
    return BLOCK.findall(text_of(page))


def unrolled(loop: re.Match) -> str:
    """A shell loop's body once for each of its values."""
    name, values, body = loop.groups()
    return "".join(body.replace(f"${name}", value) for value in values.split())


def commands(shell: str) -> list[list[str]]:
    """The words of every command of a bash block."""
    lines = LOOP.sub(unrolled, shell).replace("\\\n", " ").splitlines()
    return [
        words
        for line in lines
        for part in line.split("&&")
        if (words := shlex.split(part, comments=True))
    ]


@pytest.fixture(scope="module")
def stand_ins(tiny_csv, tmp_path_factory) -> dict[str, str]:
    """What the pages name -> what stands in for it here. The one table of replacements."""
    folder = tmp_path_factory.mktemp("hub")
    tokenizer = train_wordpiece(tiny_csv.read_text().splitlines(), 128)
    shape = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    electra = ElectraConfig(
        **shape,
        embedding_size=64,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=1,
        intermediate_size=64,
    )
    distilbert = DistilBertConfig(**shape, dim=64, n_layers=2, n_heads=1, hidden_dim=64)
    models = {
        "banglabert": ElectraForPreTraining(electra),  # with no classifier's head, as the real one
        "distilbert": DistilBertForSequenceClassification(distilbert),
    }
    for name, model in models.items():
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    (folder / "more.txt").write_text("\n".join(f"another good text {i}" for i in range(40)))
    return {
        "csebuetnlp/banglabert": str(folder / "banglabert"),
        "more_texts.txt": str(folder / "more.txt"),
        "data/HateSpeech.csv": str(tiny_csv),
        "my comments.csv": str(tiny_csv),
        "distilbert-base-multilingual-cased": str(folder / "distilbert"),
        "scratch:4x256": "scratch:2x64",
    }


@pytest.fixture(scope="module")
def output(tmp_path_factory) -> Path:
    """One folder for all commands, so that they share the stages they have in common."""
    return tmp_path_factory.mktemp("docs")


def replaced(text: str, stand_ins: dict[str, str]) -> str:
    for name, stand_in in stand_ins.items():
        text = text.replace(name, stand_in)
    return text


def given(words: list[str]) -> dict[str, str]:
    """Option -> value, from the command line and from the file that `--config` names."""
    found = {
        flag[2:]: value
        for flag, value in zip(words, [*words[1:], ""], strict=True)
        if flag.startswith("--")
    }
    return (yaml.safe_load(Path(found["config"]).read_text()) if "config" in found else {}) | found


def tiny(words: list[str], stand_ins: dict[str, str], output: Path) -> list[str]:
    """The arguments of a documented command: defaults replaced as names are, epochs and lengths
    capped, all in absolute folders, because the shared measuring process runs in another
    directory."""
    words = [replaced(word, stand_ins) for word in words]
    named = given(words)
    defaults = {
        "dataset_path": "data/HateSpeech.csv",
        "teacher_path": "scratch:4x256",
        "test_fraction": "0.1",
    }
    extra = {
        name: replaced(value, stand_ins) for name, value in defaults.items() if name not in named
    }
    extra |= {name: str(min(most, int(named.get(name, most)))) for name, most in MOST.items()}
    extra |= {"output_dir": str(output / named.get("output_dir", "")), "device": "cpu"}
    return words + [word for name, value in extra.items() for word in (f"--{name}", value)]


@pytest.fixture(scope="module")
def ran() -> set[str]:
    """Commands that have run: a command that several pages show runs once."""
    return set()


@pytest.fixture
def run_block(run_main, stand_ins, output, ran, monkeypatch, capsys):
    """Runs one fenced block in the shared folder: a command, a Python example, or a file of
    options."""
    monkeypatch.chdir(output)
    monkeypatch.setenv("XDG_CACHE_HOME", str(output / "cache"))

    def run_command(words: list[str]) -> None:
        argv, line = words[2:], shlex.join(words)
        if line in ran:
            return
        if argv == ["--help"]:
            with pytest.raises(SystemExit, match="^0$"):
                run_main(argv)
            assert capsys.readouterr().out.startswith("usage: main.py")
        else:
            code, printed = run_main(tiny(argv, stand_ins, output)), capsys.readouterr()
            shown = (
                "rows" if "--audit" in argv else "Pipeline" if "--run_ablation" in argv else "Stage"
            )
            assert code == 0 and printed.out.startswith(shown), f"{line}\n{printed.err[-2000:]}"
        ran.add(line)

    def label(argv: list[str]) -> None:
        named = dict(zip(argv, argv[1:], strict=False))
        if (source := named.get("--input", "-")) != "-":
            shutil.copy(stand_ins["data/HateSpeech.csv"], source)
        output = Path(named.get("--output", "-"))
        output.unlink(missing_ok=True)
        rows = [{"text": "a good river"}, {"text": "a vile road"}]
        stdin = io.BytesIO("\n".join(map(json.dumps, rows)).encode())
        stdout = io.TextIOWrapper(io.BytesIO(), write_through=True)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", SimpleNamespace(buffer=stdin))
            patch.setattr(sys, "stdout", stdout)
            assert inference.main(argv) == 0
        written = output.read_bytes() if output.name != "-" else stdout.buffer.getvalue()
        assert len(written.splitlines()) == (161 if output.name != "-" else 2)

    def measure(argv: list[str]) -> None:
        named = dict(zip(argv, argv[1:], strict=False))
        shutil.copy(stand_ins["data/HateSpeech.csv"], named["--input"])
        if "--output" in named:
            Path(named["--output"]).unlink(missing_ok=True)
        assert evaluate.main(argv) == 0
        assert "macro-F1" in capsys.readouterr().out

    def run(language: str, content: str) -> None:
        if language == "bash":
            for words in commands(content):
                if words[:2] == ["python", "main.py"]:
                    run_command(words)
                elif words[:2] == ["python", "inference.py"]:
                    label(words[2:])
                elif words[:2] == ["python", "evaluate.py"]:
                    measure(words[2:])
                elif words[:2] == ["python", "report.py"]:
                    named = [
                        sorted(map(str, Path().glob(word))) if "*" in word else [word]
                        for word in words[2:]
                    ]
                    assert report.main([word for found in named for word in found]) == 0
        elif language == "python":
            exec(compile(content, "example", "exec"), {})
            capsys.readouterr()  # what the example printed
        elif language == "yaml":
            Path("run.yaml").write_text(replaced(content, stand_ins), encoding="utf-8")

    return run


@pytest.mark.parametrize(
    "page", [page for page in PAGES if "```bash" in text_of(page)], ids=lambda page: page.name
)
def test_the_commands_and_examples_of_a_page_run(page, run_block):
    for language, content in blocks(page):
        run_block(language, content)


def test_every_command_is_one_that_is_run_or_known():
    shown = [
        words
        for page in PAGES
        for language, content in blocks(page)
        if language == "bash"
        for words in commands(content)
    ]
    assert len(shown) > 20
    for words in shown:
        line = " ".join(words) + " "
        assert line.startswith(NOT_RUN) or (words[0] == "python" and (ROOT / words[1]).is_file()), (
            line
        )


def test_the_users_own_example_and_the_test_command_appear_verbatim():
    text = text_of(ROOT / "README.md")
    example = r"""python main.py --pipeline kd_prune_quant --dataset_path data/HateSpeech.csv \
    --teacher_path csebuetnlp/banglabert --student_path distilbert-base-multilingual-cased \
    --teacher_epochs 5 --epochs 10 --fine_tune_epochs 3 --batch 32 \
    --prune_method magnitude --prune_sparsity 0.4 --quant_method fp16
"""
    assert example in text
    assert re.search(r"^pip install -r requirements.txt && python -m pytest tests/$", text, re.M)


ONLY_SOMETIMES = {
    "repeat",
    "pipeline",
    "experiment",
    "thresholds",
    "never_predicted",
    "macro_f1[...]",
    "accuracy[...]",
    "rows[...]",
    "macro_f1_sd",
    "accuracy_sd",
    "delta_macro_f1_sd",
    "validation_macro_f1",
    "validation_drop",
    "shipped",
    "layers_left_whole",
}


def test_evaluation_explains_every_column_of_the_results(run_block, output):
    run_block(
        "bash",
        "python main.py --pipeline kd_quant --quant_method static --batch 16 --max_length 64",
    )
    columns = set()
    for path in (output / "compressed_models").glob("*/results_final.csv"):
        with path.open(newline="", encoding="utf-8") as file:
            columns |= {
                name for name in next(csv.reader(file)) if not name.startswith("config.")
            } - ONLY_SOMETIMES
    columns = {re.sub(r"^(f1|precision|recall)\..*", r"\1.<label>", name) for name in columns}
    rows = re.findall(r"^\| (`.*?) \|", text_of(ROOT / "docs" / "evaluation.md"), re.M)
    assert {name for row in rows for name in re.findall(r"`([^`]+)`", row)} == columns | {
        "config.*"
    } | ONLY_SOMETIMES


def test_generated_tables_and_pins_are_fresh():
    done = subprocess.run(
        [sys.executable, "scripts/make_docs.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


def test_a_stale_table_is_noticed():
    sys.path.insert(0, str(ROOT / "scripts"))
    from make_docs import with_tables

    stale = "<!-- options: Pipeline -->\n| `--seed` | 41 |\n<!-- end -->"
    assert (
        with_tables(stale) != stale == "<!-- options: Pipeline -->\n| `--seed` | 41 |\n<!-- end -->"
    )
    assert with_tables(with_tables(stale)) == with_tables(stale) and "| 42 |" in with_tables(stale)


def test_every_option_is_documented_once():
    tables = [found for page in PAGES for found in GENERATED.findall(text_of(page))]
    assert sorted(group for group, _ in tables) == sorted(GROUPS)
    documented = [name for _, table in tables for name in re.findall(r"^\| `--(\w+)`", table, re.M)]
    assert sorted(documented) == sorted(OPTIONS)


@pytest.mark.parametrize(
    "command", [inference, evaluate, report, benchmark], ids=lambda module: module.__name__
)
def test_every_option_of_another_command_is_documented_on_its_page(command, capsys):
    with pytest.raises(SystemExit):
        command.main(["--help"])
    options = set(re.findall(r"^  (--\w+)", capsys.readouterr().out, re.M))
    pages = " ".join(
        text for page in PAGES[2:] if f"{command.__name__}.py" in (text := text_of(page))
    )
    assert (
        options and {option for option in options if not re.search(rf"{option}\b", pages)} == set()
    )


def test_the_diagram_shows_every_stage():
    (diagram,) = (
        content for language, content in blocks(ROOT / "README.md") if language == "mermaid"
    )
    assert set(re.findall(r"\w+", diagram)) >= {
        *(stage.name for stage in STAGES),
        "data",
        "gate",
        "artifact",
    }


def test_every_option_that_a_page_names_exists():
    for page in PAGES:
        of_the_pipeline = OTHER_COMMANDS.sub("", text_of(page))
        named = set(re.findall(r"(?<![\w-])--([a-z0-9_]+)", of_the_pipeline))
        ours = (
            re.findall(r"--(\w+)", inference.build_parser().format_help())
            if page.stem == "inference"
            else re.findall(r"--(\w+)", evaluate.build_parser().format_help())
            if page.stem == "evaluation"
            else []
        )
        assert named <= {*OPTIONS, *ours, "help", "version"}, page.name


def test_all_pages_exist():
    assert {page.stem for page in PAGES} == DOCS | {"README", "CONTRIBUTING"}


def test_every_link_leads_to_a_file():
    for page in PAGES:
        links = re.findall(r"\]\(([^)#:]+)\)", text_of(page))
        assert [link for link in links if not (page.parent / link).exists()] == [], page.name


def test_requirements_are_pinned_and_each_is_justified():
    pins = dict(line.split("==") for line in (ROOT / "requirements.txt").read_text().split())
    assert pins["torch"] == "2.13.0"
    page = text_of(ROOT / "docs" / "TECHNICAL_DOCS.md")
    listed = re.findall(
        r"`([^`]+)`", " ".join(re.findall(r"^\| (.*?) \|", page.split("## Dependencies")[1], re.M))
    )
    assert sorted(listed) == sorted(pins)


def test_the_sizes_in_the_readme_are_those_of_the_two_architectures():
    """BanglaBERT is an ELECTRA base of 32,000 tokens; the figures are counts, without and with a
    head of two labels."""
    electra = ElectraConfig(
        vocab_size=32000,
        embedding_size=768,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
    )
    with torch.device("meta"):
        teacher = ElectraForSequenceClassification(electra)
        student = DistilBertForSequenceClassification(DistilBertConfig(vocab_size=119547))
    counts = {
        name: sum(p.numel() for p in model.parameters())
        for name, model in (
            ("teacher", teacher),
            ("student", student),
            ("electra", teacher.electra),
            ("distilbert", student.distilbert),
        )
    }
    embedding = student.distilbert.embeddings.word_embeddings.weight.numel()
    shown = [
        f"{counts['electra'] / 1e6:.1f} M",
        f"{4 * counts['teacher'] / 1e6:.0f} MB",
        f"{counts['distilbert'] / 1e6:.1f} M",
        f"{4 * counts['student'] / 1e6:.0f} MB",
        f"{embedding / counts['distilbert']:.0%}".replace("%", " %"),
        f"{counts['teacher'] / counts['student']:.2f}x",
    ]
    assert shown == ["110.0 M", "442 MB", "134.7 M", "541 MB", "68 %", "0.82x"]
    assert all(figure in text_of(ROOT / "README.md") for figure in shown)
