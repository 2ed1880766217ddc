"""Stage `export`: the last full-precision model as graphs for ONNX Runtime and OpenVINO.

All graphs of a model are in one directory with one config and one tokenizer, in the layout of the
Hugging Face Hub: `onnx/model.onnx`, `onnx/model_quantized.onnx`, `openvino/openvino_model.xml`, ...
Every graph is a format with a results row.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from datasets import DatasetDict
from tqdm import tqdm

from compression_config import Options
from data import label_array
from encoders.calibration import calibration_texts
from engines import graphs
from engines.engine import engine_name, load_engine, predict_logits, tokenizer_files
from engines.sensitivity import quality_gate, record_skipped_layers
from runtime.finite import FORMAT_ADVICE, check_logits
from task import Task

REQUIREMENTS = {
    "onnx": ("onnx", "onnxruntime", "onnx_ir"),
    "openvino": ("openvino", "nncf", "onnx"),
}

CHECKED_TEXTS = 32  # whose logits are computed by every new graph

TOLERANCE = 1e-3  # largest accepted difference between the logits of an fp32 graph and of torch


@dataclass(frozen=True)
class GraphFormat:
    """A graph: its format name, its writer, and the bits of its weights."""

    format_name: str
    write: graphs.Writer
    bits: int


GRAPHS = {  # results row -> graph
    "onnx": GraphFormat("onnx/model.onnx", graphs.copy_onnx, 32),
    "onnx-int8": GraphFormat("onnx/model_quantized.onnx", graphs.quantize_onnx_dynamic, 8),
    "onnx-static": GraphFormat("onnx/model_static.onnx", graphs.quantize_onnx_static, 8),
    "onnx-int4": GraphFormat("onnx/model_q4.onnx", graphs.quantize_onnx_int4, 4),
    "openvino": GraphFormat("openvino/openvino_model.xml", graphs.convert_to_openvino, 32),
    "openvino-int8": GraphFormat(
        "openvino/openvino_model_qint8_quantized.xml", graphs.quantize_openvino_int8, 8
    ),
    "openvino-int4": GraphFormat(
        "openvino/openvino_model_qint4_quantized.xml", graphs.quantize_openvino_int4, 4
    ),
}


def selected_graphs(engine: str) -> dict[str, GraphFormat]:
    """Results row -> graph, for every graph of `--export`: none, an engine, or all."""
    selected = {}
    for row, graph in GRAPHS.items():
        if engine in ("all", engine_name(graph.format_name)):
            selected[row] = graph
    return selected


def exported_formats(options: Options) -> dict[str, str]:
    """Results row -> format name, for every graph of `--export`."""
    return {row: graph.format_name for row, graph in selected_graphs(options.export).items()}


def required_packages(engine: str) -> list[str]:
    """The packages that `--export` needs: none, those of an engine, or all."""
    packages = []
    for required_by, names in REQUIREMENTS.items():
        if engine in ("all", required_by):
            packages += names
    return packages


def export(
    model_in: Path, splits: DatasetDict, task: Task, out_dir: Path, options: Options
) -> Path:
    """Stage `export`: write every graph of `--export`; the fp32 graphs are compared with torch.

    UserError if a logit of a graph is not finite."""
    texts = calibration_texts(splits["train"], options.calibration_samples, options.seed)
    gate = None
    if options.quant_auto:
        gate = quality_gate(model_in, splits, label_array(splits["validation"]), task, options)
    write_compact_json(model_in, out_dir)
    calibration = graphs.Calibration(out_dir, texts, options.max_length)
    skipped_layers = {}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "model.onnx"
        graphs.write_onnx(model_in, source)
        for row, graph in tqdm(selected_graphs(options.export).items(), desc="export", leave=False):
            target = out_dir / graph.format_name
            target.parent.mkdir(exist_ok=True)
            if gate is not None and graph.bits < 32:
                skipped_layers[row] = gate.write_until_accepted(
                    partial(graph.write, source, target, calibration),
                    out_dir,
                    graph.format_name,
                    graph.bits,
                )
            else:
                graph.write(source, target, calibration, ())
            checked = (graph.format_name, texts[:CHECKED_TEXTS], options.max_length)
            if graph.bits == 32:
                check_equivalent(model_in, out_dir, *checked)
            else:
                graph_logits(out_dir, *checked)
    record_skipped_layers(out_dir, skipped_layers)
    return out_dir


def write_compact_json(model_in: Path, out_dir: Path) -> None:
    """Copy config and tokenizer as JSON without whitespace, which matters for a small model."""
    for path in [model_in / "config.json", *tokenizer_files(model_in)]:
        content = json.loads(path.read_text(encoding="utf-8"))
        text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
        (out_dir / path.name).write_text(text, encoding="utf-8")


def graph_logits(out_dir: Path, format_name: str, texts: list[str], max_length: int) -> np.ndarray:
    """The logits [texts, labels] of a graph and its tokenizer; UserError if one is not finite."""
    logits = predict_logits(load_engine(out_dir, format_name, max_length), texts)
    check_logits(logits, format_name, FORMAT_ADVICE)
    return logits


def check_equivalent(
    model_in: Path, out_dir: Path, format_name: str, texts: list[str], max_length: int
) -> None:
    """Compare the logits of an fp32 graph and its tokenizer with those of the checkpoint.

    Raises RuntimeError if a logit differs by more than TOLERANCE.
    """
    logits = graph_logits(out_dir, format_name, texts, max_length)
    expected = predict_logits(load_engine(model_in, "torch", max_length), texts)
    difference = float(np.abs(logits - expected).max())
    if difference > TOLERANCE:
        raise RuntimeError(
            f"{format_name} differs from {model_in} by {difference:.4f} in a logit; "
            f"{TOLERANCE} is allowed"
        )
