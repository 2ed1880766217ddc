"""Commands end in one line and with the right exit code: signals, closed or full streams, terminals
that cannot show every character."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parent.parent
PREPARED = "from runtime.terminal import prepare_terminal; prepare_terminal('command.py'); "
ENDINGS = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "hung up"}
MAX_EXIT_S = 3


def restore_signals() -> None:
    """Undo what a background process of a shell inherits: signals that are ignored."""
    for name in ENDINGS:
        signal.signal(getattr(signal, name), signal.SIG_DFL)


def start(arguments: list, **streams) -> subprocess.Popen:
    """A Python process in a process group of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, *arguments],
        stdout=streams.pop("stdout", subprocess.DEVNULL),
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
        start_new_session=True,
        preexec_fn=restore_signals,
        **streams,
    )


def shell(command: str) -> subprocess.CompletedProcess:
    """A command of a shell in the project's directory; `python` is this Python."""
    command = command.replace("python", sys.executable, 1)
    return subprocess.run(
        ["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("name", ENDINGS)
def test_a_signal_ends_a_process_that_is_in_native_code_in_one_line(name):
    native = "import hashlib; print('ready', flush=True); "
    native += "hashlib.pbkdf2_hmac('sha256', b'a', b'b', 10**9)"
    process = start(["-c", PREPARED + native], stdout=subprocess.PIPE)
    process.stdout.readline()
    process.send_signal(getattr(signal, name))
    _, errors = process.communicate(timeout=MAX_EXIT_S)
    assert errors == f"command.py: {ENDINGS[name]}\n"
    assert process.returncode == 128 + getattr(signal, name)


def test_an_ignored_signal_stays_ignored():
    program = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN); " + PREPARED
    program += "import os; os.kill(os.getpid(), signal.SIGHUP); import time; time.sleep(0.3)"
    process = start(["-c", program])
    assert (process.communicate(timeout=10)[1], process.returncode) == ("", 0)


@pytest.mark.parametrize(
    "command", ["main.py", "inference.py", "evaluate.py", "benchmark.py", "report.py"]
)
def test_an_interrupt_during_the_imports_of_a_command_is_one_line(command, tmp_path):
    marker = tmp_path / "marker"
    program = (
        "import pathlib, runpy, sys, runtime.terminal as terminal; prepare = "
        "terminal.prepare_terminal\n"
        f"def mark(program): prepare(program); pathlib.Path({str(marker)!r}).touch()\n"
        "terminal.prepare_terminal = mark\n"
        f"sys.argv = [{command!r}, '--nonexistent']\n"
        f"runpy.run_path({str(ROOT / command)!r}, run_name='__main__')\n"
        "import time; time.sleep(9)"
    )
    process = start(["-c", program])
    while not marker.exists():
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=10)
    assert (errors, process.returncode) == (f"{command}: interrupted\n", 130)


def test_an_interrupt_of_a_run_ends_its_child_processes_and_is_in_its_log(tiny_csv, tmp_path):
    arguments = [ROOT / "main.py", "--dataset_path", tiny_csv, "--output_dir", tmp_path]
    arguments += ["--experiment", "run", "--device", "cpu", "--teacher_path", "scratch:1x64"]
    arguments += ["--teacher_epochs", "1", "--pipeline", "baseline", "--quiet"]
    process = start(arguments)
    children = []
    while process.poll() is None and not (tmp_path / "models" / "run" / "predictions").exists():
        time.sleep(0.05)
    while process.poll() is None and len(children) < 2:  # the resource tracker and the worker
        time.sleep(0.05)
        children = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, errors = process.communicate(timeout=MAX_EXIT_S)
    assert errors.splitlines()[-1] == "main.py: interrupted; run the same command again to resume"
    assert "Traceback" not in errors and process.returncode == 130
    _, alive = psutil.wait_procs(children, timeout=MAX_EXIT_S)
    assert alive == []
    log = (tmp_path / "models" / "run" / "run.log").read_text()
    assert log.splitlines()[-1].endswith(" interrupted; run the same command again to resume")


def test_temporary_directories_are_deleted_when_a_signal_ends_the_process(tmp_path):
    program = PREPARED + "import tempfile, time; folder = tempfile.TemporaryDirectory(dir="
    program += f"{str(tmp_path)!r}); print('ready', flush=True); time.sleep(9)"
    process = start(["-c", program], stdout=subprocess.PIPE)
    process.stdout.readline()
    process.terminate()
    process.communicate(timeout=MAX_EXIT_S)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("command", ["main.py --help", "report.py --help"])
def test_a_full_standard_output_is_an_error_of_one_line(command):
    done = shell(f"python {command} > /dev/full")
    name = command.split()[0]
    reason = "No space left on device"
    assert done.stderr == f"{name}: error: standard output cannot be written: {reason}\n"
    assert done.returncode == 1


def test_a_closed_standard_output_is_refused():
    done = shell("python report.py x >&-")
    line = "standard output is closed; redirect it to a file or to /dev/null"
    assert (done.stderr, done.returncode) == (f"report.py: error: {line}\n", 2)


@pytest.mark.parametrize("closed", ["<&-", "2>&-", "<&- 2>&-"])
def test_other_closed_streams_change_nothing(closed):
    done = shell(f"python main.py --help {closed}")
    assert done.returncode == 0 and done.stdout.startswith("usage: main.py")
    refused = shell(f"python main.py --batch 0 {closed}")
    assert (refused.stdout, refused.returncode) == ("", 2)


@pytest.mark.parametrize("command", ["main.py --help", "inference.py --help"])
def test_a_reader_that_closes_standard_output_is_no_error(command):
    done = shell(f"python {command} | head -c 1; exit ${{PIPESTATUS[0]}}")
    assert (done.stdout, done.stderr, done.returncode) == ("u", "", 0)


def test_characters_that_a_terminal_cannot_show_are_escaped():
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    program = PREPARED + "print('ক'); import sys; print('খ', file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("\\u0995\n", "\\u0996\n")


def test_within_a_notebook_or_a_thread_nothing_is_changed():
    code = (
        "import io, signal, sys, threading\n"
        "from runtime.terminal import prepare_terminal\n"
        "handler = signal.getsignal(signal.SIGINT)\n"
        "thread = threading.Thread(target=prepare_terminal, args=('command.py',))\n"
        "thread.start(); thread.join()\n"
        "sys.modules['ipykernel'] = sys\n"
        "prepare_terminal('command.py')\n"
        "del sys.modules['ipykernel']\n"
        "sys.stdout = io.StringIO()\n"
        "prepare_terminal('command.py')\n"
        "sys.stdout = sys.__stdout__\n"
        "assert signal.getsignal(signal.SIGINT) is handler\n"
        "print('unchanged')\n"
    )
    output, errors = start(["-c", code], stdout=subprocess.PIPE).communicate(timeout=30)
    assert (output, errors) == ("unchanged\n", "")


def test_a_signal_to_a_forked_process_ends_only_that_process():
    code = PREPARED + (
        "import multiprocessing, time\n"
        "child = multiprocessing.get_context('fork').Process(target=time.sleep, args=(60,))\n"
        "child.start(); time.sleep(0.5); child.terminate(); child.join(10)\n"
        "print(child.exitcode, flush=True)\n"
    )
    process = start(["-c", code], stdout=subprocess.PIPE)
    output, errors = process.communicate(timeout=30)
    assert (output, errors, process.returncode) == ("-15\n", "", 0)
