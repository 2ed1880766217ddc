"""One wrapper for all commands: exit codes and one line on stderr instead of a traceback."""

import errno

import pytest

from runtime import exit_codes
from runtime.errors import ErrorCollector, UserError
from runtime.exit_codes import run_command
from runtime.terminal import CommandContext


def run(error: BaseException | None, **context) -> int:
    """The exit code of a command that raises `error`."""

    def body(argv: list[str], given: CommandContext) -> int:
        for name, value in context.items():
            setattr(given, name, value)
        if error:
            raise error
        return len(argv)

    return run_command("command.py", body, ["one", "two", "three"])


def test_the_body_is_given_the_arguments_and_its_code_is_returned(capsys):
    assert run(None) == 3 and capsys.readouterr().err == ""


def test_a_user_error_prints_each_line_and_exits_with_2(capsys):
    assert run(UserError("--batch is 0", "--seed is x")) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["command.py: error: --batch is 0", "command.py: error: --seed is x"]


def test_only_the_main_process_prints_a_user_error(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    assert run(UserError("--batch is 0")) == 2 and capsys.readouterr().err == ""


@pytest.mark.parametrize("can_resume", [True, False])
def test_an_interrupt_exits_with_130_and_says_whether_the_command_resumes(can_resume, capsys):
    assert run(KeyboardInterrupt(), can_resume=can_resume) == 130
    line = capsys.readouterr().err
    assert line.startswith("command.py: interrupted")
    assert ("run the same command again to resume" in line) == can_resume


def test_a_full_disk_exits_with_1_and_names_the_directory(tmp_path, capsys):
    error = OSError(errno.ENOSPC, "full")
    assert run(error, output_dir=str(tmp_path), can_resume=True) == 1
    line = capsys.readouterr().err
    assert f"no space left in {tmp_path}" in line and "finished work is kept" in line
    native = RuntimeError("I/O error: No space left on device (os error 28)")
    assert run(native, output_dir=str(tmp_path)) == 1


def test_a_full_directory_of_temporary_files_is_the_one_that_is_named(
    tmp_path, capsys, monkeypatch
):
    free = {str(tmp_path): 5 * 10**9, "/small": 900_000}
    monkeypatch.setattr(exit_codes.tempfile, "gettempdir", lambda: "/small")
    monkeypatch.setattr(exit_codes, "free_bytes", free.get)
    assert run(OSError(errno.ENOSPC, "full"), output_dir=str(tmp_path)) == 1
    assert "no space left in /small;" in capsys.readouterr().err
    error = OSError(errno.ENOSPC, "full", "/elsewhere/file")
    assert run(error, output_dir=str(tmp_path)) == 1
    assert "no space left in /elsewhere;" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        NotADirectoryError(errno.ENOTDIR, "Not a directory", "models/run"),
        PermissionError(errno.EACCES, "Permission denied", "models/run"),
        OSError(errno.ENAMETOOLONG, "File name too long", "models/run"),
    ],
)
def test_an_unusable_place_is_one_line(error, capsys):
    assert run(error) == 1
    assert capsys.readouterr().err == f"command.py: error: models/run: {error.strerror}\n"


def test_another_error_is_raised_with_its_traceback(tmp_path):
    with pytest.raises(ZeroDivisionError):
        run(ZeroDivisionError(), output_dir=str(tmp_path))


def test_a_collector_raises_the_lines_of_all_checks_once_and_lets_other_errors_pass():
    errors = ErrorCollector()
    errors.raise_if_any()
    for lines in (("a", "b"), ("b", "c")):
        with errors:
            raise UserError(*lines)
    with pytest.raises(UserError) as caught:
        errors.raise_if_any()
    assert caught.value.lines == ("a", "b", "c")
    with pytest.raises(ZeroDivisionError), errors:
        raise ZeroDivisionError


def test_a_machine_without_any_space_for_temporary_files_is_one_line(monkeypatch, capsys):
    def no_directory() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(exit_codes.tempfile, "gettempdir", no_directory)
    assert run(OSError(errno.ENOSPC, "No space left on device", "/full/page.html")) == 1
    assert "no space left in /full" in capsys.readouterr().err
