"""Nothing leaves the machine: no library looks up a host or writes into the home directory."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

GUARD = """
import os, socket

def refuse(name):
    def refused(*arguments, **_):
        with open(os.environ["LOOKUPS"], "a") as file:
            print(name, arguments, file=file)
        raise OSError("there is no network")
    return refused

for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex", "create_connection"):
    setattr(socket, name, refuse(name))
"""

# every library that can report, used as an export and a scoring use it
EXPORT_AND_SCORE = """
import shutil
import sys
from pathlib import Path
import engines.graphs as graphs
from engines.engine import load_engine
from tiny_models import MAX_LENGTH, TEXTS, save_pruned_model, save_tokenizer

parent, out = Path(sys.argv[1]), Path(sys.argv[2])
save_pruned_model("bert", parent)
save_tokenizer("bert", parent)
save_tokenizer("bert", out)
shutil.copy2(parent / "config.json", out)
graphs.write_onnx(parent, out / "model.onnx")
calibration = graphs.Calibration(out, TEXTS[:8], MAX_LENGTH)
for name, write in (
    ("onnx/dynamic.onnx", graphs.quantize_onnx_dynamic),
    ("openvino/plain.xml", graphs.convert_to_openvino),
    ("openvino/int8.xml", graphs.quantize_openvino_int8),
    ("openvino/int4.xml", graphs.quantize_openvino_int4),
):
    target = out / name
    target.parent.mkdir(exist_ok=True)
    write(out / "model.onnx", target, calibration, ())
    engine = load_engine(out, name, MAX_LENGTH)
    assert engine.forward(engine.encode(TEXTS[:2])).shape == (2, 3)
assert "pytest" not in sys.modules  # nncf would not report
"""

CACHED_CHOICE = ".cache/text-classifier-compression/fastest.json"  # of the format, by inference.py

RUN = (
    "--pipeline kd_quant --teacher_path scratch:1x64 --student_path teacher:1 --teacher_epochs 1 "
    "--epochs 1 --max_length 32 --device cpu --calibration_samples 8 --quant_method fp16 "
    "--export all --experiment quiet --quiet"
).split()


def run_guarded(command: list[str], folder: Path) -> str:
    """Run Python without a network and with an empty home directory.

    Returns the look-ups that Python code tried, and those of native code if strace is installed.
    """
    guard = folder / "guard"
    guard.mkdir()
    (guard / "sitecustomize.py").write_text(GUARD)
    (folder / "home").mkdir()
    lookups = folder / "lookups"
    lookups.touch()
    cleared = ("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "HF_HOME", "CI", "ORT_DISABLE_TELEMETRY")
    environment = {name: value for name, value in os.environ.items() if name not in cleared}
    environment |= {
        "HOME": str(folder / "home"),
        "LOOKUPS": str(lookups),
        "PYTHONPATH": os.pathsep.join([str(guard), str(ROOT), str(ROOT / "tests")]),
        "MPLCONFIGDIR": str(folder),
    }
    trace = folder / "trace"
    tracer = []
    if shutil.which("strace"):
        tracer = ["strace", "-f", "--seccomp-bpf", "-e", "trace=connect", "-o", str(trace)]
    done = subprocess.run(
        [*tracer, sys.executable, *command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    connections = trace.read_text().splitlines() if tracer else []
    internet = [line for line in connections if re.search(r"AF_INET6?\b", line)]
    return lookups.read_text() + "\n".join(internet)


def files_in(directory: Path) -> list[str]:
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))


def test_an_export_and_a_scoring_report_nothing(tmp_path):
    (tmp_path / "script.py").write_text(EXPORT_AND_SCORE)
    command = [str(tmp_path / "script.py"), str(tmp_path / "parent"), str(tmp_path / "out")]
    (tmp_path / "out").mkdir()
    assert run_guarded(command, tmp_path) == ""
    assert files_in(tmp_path / "home") == []


def test_a_user_can_turn_a_report_on(monkeypatch):
    from runtime.telemetry import disable_telemetry

    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "0")
    disable_telemetry()
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "0"


@pytest.mark.slow
def test_a_run_with_all_exports_and_its_scoring_report_nothing(tmp_path, tiny_csv):
    (tmp_path / "run").mkdir()
    command = ["main.py", "--dataset_path", str(tiny_csv), "--output_dir", str(tmp_path), *RUN]
    assert run_guarded(command, tmp_path / "run") == ""
    assert files_in(tmp_path / "run" / "home") == []
    (tmp_path / "score").mkdir()
    model = str(tmp_path / "compressed_models" / "quiet")
    assert run_guarded(["inference.py", "--model", model, "a text"], tmp_path / "score") == ""
    written = files_in(tmp_path / "score" / "home")
    assert [name for name in written if name.endswith(".json")] == [CACHED_CHOICE]
    assert all(CACHED_CHOICE.startswith(name) for name in written)
