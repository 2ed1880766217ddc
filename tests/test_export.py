"""The exported graphs of tiny models of five families reload, agree with torch, and are smaller."""

import json
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from missing_packages import hide_package
from tiny_models import (
    COMMON,
    CONFIGS,
    FAMILIES,
    MAX_LENGTH,
    SHAPE,
    TEXTS,
    TOLERANCE,
    TinyModels,
    logits_on_disk,
    quantize_all,
    replace_config,
    save_pruned_model,
    save_tokenizer,
    sentences,
)
from transformers import AutoTokenizer, DebertaConfig

from compression_config import Options
from engines import graphs
from engines.classifier import load_format
from engines.engine import formats_in, read_tokenizer, serving_files
from engines.parameter_counts import count_parameters
from export import (
    GRAPHS,
    REQUIREMENTS,
    check_equivalent,
    export,
    exported_formats,
    required_packages,
    selected_graphs,
)
from quantization import QUANTIZERS
from runtime.artifacts import read_record, write_record
from runtime.errors import UserError, check_installed
from task import Task

ROOT = Path(__file__).resolve().parent.parent

# Bits -> largest mean |difference| of the logits. NF4 has a lower error than 4-bit graphs: it keeps
# the embeddings in full precision.
MAX_DIFFERENCE = {32: 1e-5, 8: TOLERANCE["static"], 4: 0.2}


def export_directory(parent: Path, engine: str = "all") -> Path:
    """The exported graphs of a checkpoint, next to it; written on the first call."""
    out = parent.with_name(f"{parent.name}-export-{engine}")
    if not out.exists():
        out.mkdir()
        train = Dataset.from_dict({"text": sentences(40, seed=3), "label": [0, 1] * 20})
        splits = DatasetDict(train=train, validation=train)
        options = Options(export=engine, calibration_samples=32, max_length=MAX_LENGTH)
        export(parent, splits, Task(("a", "b"), False), out, options)
    return out


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory) -> TinyModels:
    return TinyModels(tmp_path_factory.mktemp("export"))


@pytest.mark.parametrize("row", GRAPHS)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_exported_graph_reloads_and_agrees_with_its_parent(tiny_models, family, row):
    parent = tiny_models.parent(family)
    expected = logits_on_disk(parent, "torch")
    logits = logits_on_disk(export_directory(parent), GRAPHS[row].format_name)
    assert logits.dtype == np.float32
    assert np.abs(logits - expected).mean() < MAX_DIFFERENCE[GRAPHS[row].bits]


@pytest.mark.parametrize("row", GRAPHS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_counts_of_a_graph_are_those_of_the_model_and_its_zeros_stay(tiny_models, family, row):
    parent = tiny_models.parent(family)
    expected = count_parameters(parent, "torch")
    counts = count_parameters(export_directory(parent), GRAPHS[row].format_name)
    missing = expected.parameters - counts.parameters
    if row.startswith("openvino"):  # it removes products with ones: the norms, never trained here
        assert 0 <= missing <= 6 * 64
    else:
        assert missing == 0
    assert counts.nonzeros <= expected.nonzeros
    assert counts.sparsity >= expected.sparsity


def weight_bytes(directory: Path, format_name: str) -> int:
    files = serving_files(directory, format_name)
    return sum(path.stat().st_size for path in files if path.suffix in (".onnx", ".bin"))


@pytest.mark.parametrize("family", FAMILIES)
def test_fewer_bits_are_fewer_bytes(tiny_models, family):
    directory = export_directory(tiny_models.parent(family))
    for row, graph in GRAPHS.items():
        if graph.bits < 32:
            fp32_graph = GRAPHS[row.split("-")[0]]
            fp32_bytes = weight_bytes(directory, fp32_graph.format_name)
            # 0.6 and not 0.25: in models this small much of a file is structure and scales.
            assert weight_bytes(directory, graph.format_name) < 0.6 * fp32_bytes


def test_the_layout_is_that_of_the_hub(tiny_models):
    directory = export_directory(tiny_models.parent("bert"))
    format_names = formats_in(directory)
    assert format_names == sorted(graph.format_name for graph in GRAPHS.values())
    assert "onnx/model.onnx" in format_names
    assert "onnx/model_quantized.onnx" in format_names
    assert "openvino/openvino_model.xml" in format_names
    needed = set()
    for format_name in format_names:
        needed |= set(serving_files(directory, format_name))
    assert needed == {path for path in directory.rglob("*") if path.is_file()}


def test_an_export_for_one_engine_writes_the_graphs_of_that_engine(tiny_models):
    directory = export_directory(tiny_models.parent("bert"), "onnx")
    assert formats_in(directory) == sorted(exported_formats(Options(export="onnx")).values())
    assert {name.partition("/")[0] for name in formats_in(directory)} == {"onnx"}


@pytest.mark.parametrize("family", CONFIGS)
def test_the_tokenizer_of_a_graph_gives_the_token_ids_of_transformers(tiny_models, family):
    texts = [*TEXTS, "", "?", "ba\u200bbe  ba\n", " ".join(TEXTS[:9]), "বাংলা ba"]
    parent = tiny_models.parent(family)
    tokenize, _ = read_tokenizer(parent, MAX_LENGTH)
    tokenizer = AutoTokenizer.from_pretrained(parent)
    expected = tokenizer(texts, truncation=True, max_length=MAX_LENGTH)
    assert tokenize(texts) == expected["input_ids"]


def test_a_graph_that_differs_from_its_checkpoint_stops_the_run(tiny_models):
    parent = tiny_models.parent("bert")
    int4 = GRAPHS["onnx-int4"].format_name
    with pytest.raises(RuntimeError, match="differs from .* in a logit"):
        check_equivalent(parent, export_directory(parent), int4, TEXTS, MAX_LENGTH)


@pytest.mark.parametrize("row", [row for row, graph in GRAPHS.items() if graph.bits < 32])
def test_skipped_layers_stay_in_full_precision(tiny_models, tmp_path, row):
    parent = tiny_models.parent("bert")
    source = export_directory(parent) / "onnx" / "model.onnx"
    calibration = graphs.Calibration(parent, TEXTS, MAX_LENGTH)
    target = tmp_path / Path(GRAPHS[row].format_name).name
    weight_file = target.with_suffix(".bin") if row.startswith("openvino") else target
    GRAPHS[row].write(source, target, calibration, ())
    all_quantized_bytes = weight_file.stat().st_size
    GRAPHS[row].write(source, target, calibration, ("bert.encoder.layer.1.output.dense",))
    difference = 64 * 128 * (4 - GRAPHS[row].bits / 8)  # bytes of the skipped weight
    assert weight_file.stat().st_size - all_quantized_bytes == pytest.approx(difference, rel=0.2)


def activation_ranges(parent: Path, texts: list[str], folder: Path) -> dict:
    folder.mkdir()
    source = export_directory(parent) / "onnx" / "model.onnx"
    calibration = graphs.Calibration(parent, texts, MAX_LENGTH)
    return json.loads(graphs.write_activation_ranges(source, calibration, folder).read_text())


def test_activation_ranges_do_not_depend_on_how_many_batches_are_merged_at_once(
    tiny_models, tmp_path, monkeypatch
):
    """The texts in the middle have the extremes of some activations."""
    parent = tiny_models.parent("bert")
    long_text = " ".join(TEXTS[9:])[:40]
    texts = [*TEXTS[:9], *[long_text] * 9, *TEXTS[10:19]]
    monkeypatch.setattr(graphs, "CALIBRATION_MERGE_BATCHES", 64)
    merged_at_once = activation_ranges(parent, texts, tmp_path / "64")
    monkeypatch.setattr(graphs, "CALIBRATION_MERGE_BATCHES", 1)
    merged_one_by_one = activation_ranges(parent, texts, tmp_path / "1")
    assert len(merged_at_once) > 3 and merged_at_once == merged_one_by_one
    assert activation_ranges(parent, texts[-3:], tmp_path / "three") != merged_at_once


@pytest.fixture
def large_model(tmp_path, monkeypatch) -> Path:
    """A checkpoint and its ONNX graphs, each too large for one file by a lowered limit."""
    model_dir = tmp_path / "model"
    save_pruned_model("bert", model_dir)
    save_tokenizer("bert", model_dir)
    source = tmp_path / "source" / "model.onnx"
    source.parent.mkdir()
    calibration = graphs.Calibration(model_dir, TEXTS, MAX_LENGTH)
    with monkeypatch.context() as patch:
        patch.setattr(graphs, "MAX_GRAPH_BYTES", 10_000)
        graphs.write_onnx(model_dir, source)
        for graph in GRAPHS.values():
            target = model_dir / graph.format_name
            target.parent.mkdir(exist_ok=True)
            graph.write(source, target, calibration, ())
    write_record(model_dir, stage="export", fingerprint="0")
    return model_dir


def test_the_weights_of_a_large_graph_are_in_a_second_file_that_serving_needs(
    large_model, tiny_models
):
    parent = tiny_models.parent("bert")
    expected_counts = count_parameters(parent, "torch")
    expected = logits_on_disk(parent, "torch")
    for graph in GRAPHS.values():
        logits = logits_on_disk(large_model, graph.format_name)
        assert np.abs(logits - expected).mean() < MAX_DIFFERENCE[graph.bits]
        if not graph.format_name.startswith("onnx"):
            continue
        one_file = export_directory(parent) / graph.format_name
        two_files = [large_model / graph.format_name, large_model / f"{graph.format_name}.data"]
        needed = serving_files(large_model, graph.format_name)
        assert [path for path in needed if path.parent.name == "onnx"] == two_files
        assert two_files[1].stat().st_size > 30_000
        total = sum(path.stat().st_size for path in two_files)
        assert total == pytest.approx(one_file.stat().st_size, rel=0.1)
        counts = count_parameters(large_model, graph.format_name)
        assert counts.parameters == expected_counts.parameters


def test_changed_or_missing_weights_of_a_large_graph_are_rejected(large_model):
    data = large_model / "onnx" / "model_q4.onnx.data"
    assert "onnx/model_q4.onnx.data" in read_record(large_model)["files"]
    assert load_format(large_model, "onnx/model_q4.onnx", threads=1)(TEXTS[:2])
    content = data.read_bytes()
    data.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=r"model_q4\.onnx\.data was changed"):
        load_format(large_model, "onnx/model_q4.onnx", threads=1)
    data.unlink()
    with pytest.raises(UserError, match=r"needs the file onnx/model_q4\.onnx\.data"):
        load_format(large_model, "onnx/model_q4.onnx", threads=1)


def test_weights_outside_the_directory_of_a_graph_are_rejected(large_model):
    graph = large_model / "onnx" / "model.onnx"
    inside = b"\x12\x0fmodel.onnx.data"
    outside = b"\x12\x0f../../elsewhere"
    assert inside in graph.read_bytes()
    graph.write_bytes(graph.read_bytes().replace(inside, outside))
    with pytest.raises(UserError, match="weights in '../../elsewhere', which is not in its dir"):
        serving_files(large_model, "onnx/model.onnx")


def test_a_4_bit_graph_of_a_decomposed_layer_norm_is_valid(tmp_path):
    import onnx

    config = DebertaConfig(**SHAPE, **COMMON, relative_attention=False)
    save_pruned_model("deberta", tmp_path, config)
    save_tokenizer("deberta", tmp_path)
    source = tmp_path / "source.onnx"
    graphs.write_onnx(tmp_path, source)
    target = tmp_path / "onnx" / "model_q4.onnx"
    target.parent.mkdir()
    graphs.quantize_onnx_int4(source, target, graphs.Calibration(tmp_path, TEXTS, MAX_LENGTH))
    graph = onnx.load(target)
    versions = {opset.domain: opset.version for opset in graph.opset_import}
    assert versions[""] == 17  # the version that the exporter wrote the operators for
    onnx.checker.check_model(graph)
    expected = logits_on_disk(tmp_path, "torch")
    assert np.abs(logits_on_disk(tmp_path, "onnx") - expected).mean() < MAX_DIFFERENCE[4]


@pytest.mark.parametrize("engine", REQUIREMENTS)
def test_a_missing_package_of_an_engine_is_reported_in_one_line(monkeypatch, engine):
    package = REQUIREMENTS[engine][1]
    hide_package(monkeypatch, package)
    with pytest.raises(UserError) as refusal:
        check_installed("--export", engine, required_packages(engine))
    expected = f"--export is {engine}, but needs {package}: pip install {package}"
    assert str(refusal.value) == expected


def test_the_packages_of_every_engine_are_installed():
    check_installed("--export", "all", required_packages("all"))


def test_export_none_selects_no_graph_and_all_selects_every_graph():
    assert selected_graphs("none") == {} and selected_graphs("all") == GRAPHS
    assert exported_formats(Options(export="none")) == {}
    assert exported_formats(Options(export="openvino")) == {
        "openvino": "openvino/openvino_model.xml",
        "openvino-int8": "openvino/openvino_model_qint8_quantized.xml",
        "openvino-int4": "openvino/openvino_model_qint4_quantized.xml",
    }


# Reads jobs [directory, format name, output file] from stdin, in a process that built no model.
RELOAD = """
import json, sys
import numpy as np
from engines.engine import load_engine, predict_logits
texts, max_length, jobs = json.load(sys.stdin)
for directory, format_name, output in jobs:
    engine = load_engine(directory, format_name, max_length, threads=1)
    np.save(output, predict_logits(engine, texts))
"""


class ReloadJob(NamedTuple):
    """A format to reload, and the logits that it must have."""

    directory: Path
    format_name: str
    expected: np.ndarray
    tolerance: float


def reload_jobs(family: str, labels: int, folder: Path) -> list[ReloadJob]:
    """Every format of a new model with a head of `labels`."""
    parent = folder / "parent"
    save_pruned_model(family, parent, replace_config(family, num_labels=labels))
    save_tokenizer(family, parent)
    expected = logits_on_disk(parent, "torch")
    jobs = []
    for method in QUANTIZERS:
        quantize_all(method, parent, folder / method)
        for engine in QUANTIZERS[method]:
            jobs.append(ReloadJob(folder / method, engine, expected, TOLERANCE[method]))
    directory = export_directory(parent)
    for graph in GRAPHS.values():
        tolerance = MAX_DIFFERENCE[graph.bits]
        jobs.append(ReloadJob(directory, graph.format_name, expected, tolerance))
    return jobs


@pytest.mark.slow
@pytest.mark.parametrize("labels", [2, 3, 7])
def test_every_format_of_every_family_and_head_reloads_in_a_fresh_process(tmp_path, labels):
    jobs = []
    for family in FAMILIES:
        jobs += reload_jobs(family, labels, tmp_path / family)
    outputs = [str(tmp_path / f"{number}.npy") for number in range(len(jobs))]
    commands = []
    for job, output in zip(jobs, outputs, strict=True):
        commands.append((str(job.directory), job.format_name, output))
    subprocess.run(
        [sys.executable, "-c", RELOAD],
        input=json.dumps([TEXTS, MAX_LENGTH, commands]),
        text=True,
        check=True,
        capture_output=True,
        cwd=ROOT,
    )
    for job, output in zip(jobs, outputs, strict=True):
        logits = np.load(output)
        assert logits.shape == (len(TEXTS), labels)
        assert np.abs(logits - job.expected).mean() < job.tolerance, (
            f"{job.format_name} of {job.directory}"
        )


@pytest.mark.parametrize("row", [row for row in GRAPHS if row.startswith("openvino")])
def test_a_graph_does_not_depend_on_those_written_before(row, tiny_models, tmp_path):
    source = tmp_path / "model.onnx"
    graphs.write_onnx(tiny_models.parent("bert"), source)
    calibration = graphs.Calibration(tiny_models.parent("bert"), TEXTS, MAX_LENGTH)
    contents = []
    for number in range(2):
        target = tmp_path / str(number) / "model.xml"
        target.parent.mkdir()
        GRAPHS[row].write(source, target, calibration, ())
        contents.append([target.read_bytes(), target.with_suffix(".bin").read_bytes()])
    assert contents[0] == contents[1]
