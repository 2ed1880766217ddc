"""Names from files reach neither the terminal nor a table, page or card as control characters."""

import json
import logging
import os
import re
import tarfile
from pathlib import Path

import pytest
import zstandard
from result_builders import write_run
from served_models import build_two_class_model

import inference
import report
from reporting.markdown import markdown_cell
from reporting.results import aligned_table, escape_latex
from runtime.archives import write_archive
from runtime.errors import UserError, escape_unprintable
from runtime.logs import EscapingFormatter

HOSTILE = "a\x1b[31mb\u202ec\nd\te\x07|<b>[x](y)\\input{f}"
HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def test_hidden_characters_become_escapes_and_joiners_stay():
    assert escape_unprintable("a\x1b\u202e\n\udcff") == "a\\x1b\\u202e\\n\\udcff"
    assert escape_unprintable("a\nb", keep="\n") == "a\nb"
    assert escape_unprintable("ক\u200dষ é 中") == "ক\u200dষ é 中"
    assert str(UserError("a\x1b")) == "a\\x1b"


def test_a_log_line_has_no_control_characters():
    record = logging.makeLogRecord({"msg": "label %s", "args": ("\x1b[2J\u202e",)})
    assert EscapingFormatter().format(record) == "label \\x1b[2J\\u202e"


def test_a_table_stays_aligned_around_hidden_characters():
    lines = aligned_table([["Name", "MB"], ["\x1b[31m", "1"]]).splitlines()
    assert lines[2] == "\\x1b[31m   1" and len(set(map(len, lines))) == 1


def test_cells_of_markdown_and_latex_contain_no_markup():
    assert markdown_cell("a|b<i>[x](y)\x1b") == "a\\|b\\<i>[x]\\(y)\ufffd"
    assert escape_latex("\\input{f}_5%$&#~^") == (
        "\\textbackslash{}input\\{f\\}\\_5\\%\\$\\&\\#\\textasciitilde{}\\textasciicircum{}"
    )
    assert escape_latex("0.8 +- 0.1") == "0.8 $\\pm$ 0.1"


@pytest.mark.parametrize("kind", ["text", "markdown", "latex", "html"])
def test_a_report_shows_no_control_characters_of_a_strangers_results(tmp_path, capsys, kind):
    directory = write_run(tmp_path)
    path = directory / "results_final.json"
    document = json.loads(path.read_text())
    document["rows"][3]["stage"] = HOSTILE
    document["experiment"] = HOSTILE
    path.write_text(json.dumps(document))
    page = tmp_path / "page.html"
    options = ["--html", str(page)] if kind == "html" else ["--format", kind]
    assert report.main([str(directory), *options]) == 0
    shown = page.read_text() if kind == "html" else capsys.readouterr().out
    assert not HIDDEN.search(shown)
    markup = {"markdown": "[x](y)", "latex": "\\input", "html": "<b>"}
    assert markup.get(kind, "\n\n") not in shown


def test_labels_of_a_strangers_model_print_no_control_characters(tmp_path, capsys):
    model = build_two_class_model(tmp_path / "model", every_format=False)
    (model / "stage.json").unlink()
    config = json.loads((model / "config.json").read_text())
    config["id2label"] = {"0": HOSTILE, "1": f"{HOSTILE}2"}
    (model / "config.json").write_text(json.dumps(config))
    argv = ["--model", str(model), "--engine", "onnx", "--threads", "1", "a \x1b[31m text"]
    assert inference.main(argv) == 0
    printed = capsys.readouterr().out
    assert not HIDDEN.search(printed)
    assert (printed.count("\n"), printed.count("\t")) == (1, 2)
    assert printed.endswith("\ta \\x1b[31m text\n")


def test_an_archive_has_only_plain_files_below_its_own_name(tmp_path):
    directory = tmp_path / "name"
    (directory / "onnx").mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    (directory / "onnx" / "model.onnx").write_text("graph")
    path = write_archive(directory)
    content = zstandard.ZstdDecompressor().stream_reader(path.read_bytes())
    with tarfile.open(fileobj=content, mode="r|") as archive:
        entries = list(archive)
    assert [entry.name for entry in entries] == ["name/config.json", "name/onnx/model.onnx"]
    assert all(entry.isreg() and entry.mode == 0o644 for entry in entries)


@pytest.mark.parametrize("target", ["/etc/passwd", "../secret", "config.json"])
def test_a_link_is_not_archived(tmp_path: Path, target):
    directory = tmp_path / "name"
    directory.mkdir()
    (tmp_path / "secret").write_text("secret")
    (directory / "config.json").write_text("{}")
    os.symlink(target, directory / "README.md")
    with pytest.raises(ValueError, match=r"README.md is a link and cannot be archived"):
        write_archive(directory)
    assert not list(tmp_path.glob("*.zst*"))
