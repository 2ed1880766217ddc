"""Uploads: what is checked before a run, what reaches the hub, and where the token goes."""

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_stub import Hub, serve_hub
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from compression_config import is_hub_name
from runtime.command_line import parse_options
from runtime.errors import UserError
from runtime.hub import TOKEN_VARIABLE

ROOT = Path(__file__).resolve().parent.parent
TOKEN = "hf_secretSECRETsecret"

CHECK = """
import sys
from runtime.errors import UserError
from runtime.hub import check_repository
from runtime.logs import start_logging
start_logging(10)
try:
    check_repository(sys.argv[1])
except UserError as error:
    sys.exit(error.print_to_stderr("main.py"))
"""
UPLOAD = """
import sys
from pathlib import Path
from runtime.errors import UserError
from runtime.hub import upload_model
from runtime.logs import start_logging
start_logging(10)
try:
    print(upload_model(Path(sys.argv[2]), sys.argv[1]))
except UserError as error:
    sys.exit(error.print_to_stderr("main.py"))
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve_hub() as hub:
        yield hub


@pytest.fixture
def model(tmp_path) -> Path:
    """A directory with files that the hub stores in both of its ways, in folders, and empty."""
    directory = tmp_path / "compressed_models" / "mine"
    (directory / "onnx").mkdir(parents=True)
    (directory / "README.md").write_text("---\ntags:\n- ক\n---\n# mine\n", encoding="utf-8")
    (directory / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    (directory / "onnx" / "model.onnx").write_bytes(b"\x00\xff\r\n" * 1000)
    (directory / "results_final.csv").write_text("a,b\r\n1,2\r\n", newline="")
    (directory / "empty.txt").touch()
    return directory


def environment(url: str, home: Path) -> dict[str, str]:
    """That of a process that knows only this hub, and uploads by its oldest protocol."""
    cleared = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    kept = {name: value for name, value in os.environ.items() if name not in cleared}
    return kept | {
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        TOKEN_VARIABLE: TOKEN,
    }


def call(code: str, url: str, home: Path, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=ROOT,
        env=environment(url, home),
        capture_output=True,
        text=True,
    )


def files_of(directory: Path) -> dict[str, bytes]:
    files = {}
    for path in directory.rglob("*"):
        if path.is_file():
            files[path.relative_to(directory).as_posix()] = path.read_bytes()
    return files


def check_token_is_in_its_header_only(hub: Hub, done: subprocess.CompletedProcess) -> None:
    assert TOKEN not in done.stdout + done.stderr
    for request in hub.requests:
        assert TOKEN.encode() not in request.body and TOKEN not in request.path
        with_token = [name for name, value in request.headers.items() if TOKEN in value]
        is_storage = request.path.startswith("/storage/")
        assert [name.lower() for name in with_token] == ([] if is_storage else ["authorization"])


@pytest.mark.parametrize("name", ["mine", "me/model"])
def test_an_upload_has_every_file_byte_for_byte_and_the_token_in_one_header(
    hub, model, tmp_path, name
):
    done = call(UPLOAD, hub.url, tmp_path / "home", name, str(model))
    assert done.returncode == 0, done.stderr
    assert hub.committed == files_of(model)
    full_name = "me/mine" if name == "mine" else name
    assert hub.existing == {full_name: True}  # private
    assert done.stdout.strip() == f"{hub.url}/{full_name}"
    assert len(hub.stored) == 2  # the other files are in the commit itself
    check_token_is_in_its_header_only(hub, done)
    again = call(UPLOAD, hub.url, tmp_path / "home", name, str(model))  # now it exists
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize("part", ["/repos/create", "/preupload/", "/commit/"])
def test_a_failed_upload_leaves_the_model_and_says_how_to_repeat_it(hub, model, tmp_path, part):
    hub.failing[part] = 403
    before = files_of(model)
    done = call(UPLOAD, hub.url, tmp_path / "home", "me/model", str(model))
    assert done.returncode == 2 and files_of(model) == before and hub.committed == {}
    check_token_is_in_its_header_only(hub, done)
    line = done.stderr.splitlines()[-1]
    assert "--push_to_hub is me/model, but the upload failed: " in line and "403" in line
    assert f"the model is complete in {model}" in line
    hub.failing.clear()
    words = shlex.split(line.split("to upload it later: ")[1])
    program = Path(sys.executable).with_name(words[0])
    settings = environment(hub.url, tmp_path / "home")
    again = subprocess.run([program, *words[1:]], env=settings, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert hub.committed == before and hub.existing == {"me/model": True}


def test_the_check_before_a_run_changes_nothing(hub, tmp_path):
    hub.existing = {"me/private": True, "me/public": False}
    for name in ("new", "me/new", "private", "me/private"):
        done = call(CHECK, hub.url, tmp_path, name)
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        check_token_is_in_its_header_only(hub, done)
    for name in ("public", "me/public"):
        done = call(CHECK, hub.url, tmp_path, name)
        assert done.returncode == 2 and "that repository is public" in done.stderr.splitlines()[-1]
    assert {request.method for request in hub.requests} == {"GET"}


@pytest.mark.parametrize("failure", ["token", "server", "connection"])
def test_a_hub_that_refuses_or_is_not_there_is_one_line_before_the_run(hub, tmp_path, failure):
    if failure == "token":
        hub.failing["whoami"] = 401
    elif failure == "server":
        hub.failing["/api/models/"] = 403
    url = "http://127.0.0.1:9" if failure == "connection" else hub.url
    done = call(CHECK, url, tmp_path, "me/model")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    ours = [line for line in done.stderr.splitlines() if line.startswith("main.py: error: ")]
    assert len(ours) == 1 and "--push_to_hub is me/model, but the hub says: " in ours[0]
    check_token_is_in_its_header_only(hub, done)


@pytest.mark.parametrize(
    "name",
    [
        *("a", "me/model", "Foo-BAR_foo.bar123", "_a", "a_", "1/2", "a" * 96, "me/" + "a" * 90),
        *("a/b/c", "a" * 97, "a--b", "a..b", "a.git", "-a", "a-", ".a", "a.", "/a", "a/"),
        *("a b", "ক", "a\n", "a:b", "me//a"),
    ],
)
def test_a_name_is_refused_exactly_if_the_hub_refuses_it(name):
    try:
        validate_repo_id(name)
        is_allowed = True
    except HFValidationError:
        is_allowed = False
    assert is_hub_name(name) is is_allowed


@pytest.mark.parametrize(
    "token, words",
    [(None, "HF_TOKEN is not set"), ("", "HF_TOKEN is not set"), (f"{TOKEN}\n", "has a blank")],
)
def test_a_missing_or_damaged_token_is_one_line_that_does_not_show_it(monkeypatch, token, words):
    monkeypatch.delenv(TOKEN_VARIABLE, raising=False)
    if token is not None:
        monkeypatch.setenv(TOKEN_VARIABLE, token)
    with pytest.raises(UserError) as caught:
        parse_options(["--push_to_hub", "me/model", "--batch", "0"])
    batch, line = caught.value.lines
    assert "--batch is 0" in batch and "--push_to_hub is me/model" in line and words in line
    assert TOKEN not in line


def test_an_ablation_has_no_single_model_to_upload(monkeypatch):
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    with pytest.raises(UserError, match="--run_ablation and --push_to_hub are given"):
        parse_options(["--push_to_hub", "me/model", "--run_ablation"])


def test_a_run_checks_first_and_uploads_its_finished_artifact(
    run_main, tiny_csv, tmp_path, monkeypatch, capsys
):
    import main

    steps = []

    def check(name: str) -> None:
        steps.append(("check", name, (tmp_path / "models").exists()))

    def upload(directory: Path, name: str) -> str:
        steps.append(("upload", name, directory, (directory / "README.md").is_file()))
        if len(steps) == 2:
            raise UserError("--push_to_hub is me/model, but the upload failed")
        return "https://hub/me/model"

    monkeypatch.setattr(main, "check_repository", check)
    monkeypatch.setattr(main, "upload_model", upload)
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    argv = "--pipeline baseline --teacher_path scratch:1x64 --teacher_epochs 1 --max_length 32 "
    argv += "--device cpu --experiment run --no_benchmark --push_to_hub me/model"
    argv = [*argv.split(), "--dataset_path", str(tiny_csv), "--output_dir", str(tmp_path)]
    assert run_main(argv) == 1
    printed = capsys.readouterr()
    assert printed.out.startswith("Stage") and printed.err.endswith("but the upload failed\n")
    artifact = tmp_path / "compressed_models" / "run"
    assert steps == [("check", "me/model", False), ("upload", "me/model", artifact, True)]
    assert run_main(argv) == 0
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == "uploaded to https://hub/me/model, a private repository"
    for path in (tmp_path / "models").rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes()
