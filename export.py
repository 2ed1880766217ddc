"""Stage export: the last full-precision model as graphs for ONNX Runtime and OpenVINO, in the Hub's layout.

All of a model's graphs lie in one directory, with one config and one tokenizer: `onnx/model.onnx`,
`onnx/model_quantized.onnx`, `openvino/openvino_model.xml` and so on; each is a form with a row of its own.
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
from encoders.calibration import calibration_texts
from engines import graphs
from engines.engine import engine_name, load_engine, predict_logits, tokenizer_files
from engines.sensitivity import QualityGate, record_skipped_layers
from task import Task

REQUIREMENTS = {
    "onnx": ("onnx", "onnxruntime", "onnx_ir"),
    "openvino": ("openvino", "nncf", "onnx"),
}

CHECKED_TEXTS = 32

TOLERANCE = 1e-3  # largest difference of an fp32 graph's logits from torch's that is let pass


@dataclass(frozen=True)
class GraphFormat:
    """A form of an exported model: where it lies, what writes it, the bits of its weights."""

    form: str
    write: graphs.Writer
    bits: int


GRAPHS = {  # row -> graph
    "onnx": GraphFormat("onnx/model.onnx", graphs.onnx_fp32, 32),
    "onnx-int8": GraphFormat("onnx/model_quantized.onnx", graphs.onnx_dynamic, 8),
    "onnx-static": GraphFormat("onnx/model_static.onnx", graphs.onnx_static, 8),
    "onnx-int4": GraphFormat("onnx/model_q4.onnx", graphs.onnx_int4, 4),
    "openvino": GraphFormat("openvino/openvino_model.xml", graphs.openvino_fp32, 32),
    "openvino-int8": GraphFormat(
        "openvino/openvino_model_qint8_quantized.xml", graphs.openvino_int8, 8
    ),
    "openvino-int4": GraphFormat(
        "openvino/openvino_model_qint4_quantized.xml", graphs.openvino_int4, 4
    ),
}


def selected_graphs(engine: str) -> dict[str, GraphFormat]:
    """Row -> graph of all that `--export` asks for."""
    return {
        row: graph for row, graph in GRAPHS.items() if engine in ("all", engine_name(graph.form))
    }


def required_packages(engine: str) -> list[str]:
    """The packages that the export needs."""
    return [
        package
        for known, names in REQUIREMENTS.items()
        if engine in ("all", known)
        for package in names
    ]


def export(
    model_in: Path, splits: DatasetDict, task: Task, out_dir: Path, options: Options
) -> Path:
    """Stage `export`: write every graph that `--export` gives; the fp32 ones are compared with torch."""
    texts = calibration_texts(splits["train"], options.calibration_samples, options.seed)
    gate = QualityGate(model_in, splits, task, options) if options.quant_auto else None
    whole: dict[str, list[str]] = {}
    for path in [model_in / "config.json", *tokenizer_files(model_in)]:
        compact = json.dumps(
            json.loads(path.read_text(encoding="utf-8")), ensure_ascii=False, separators=(",", ":")
        )
        (out_dir / path.name).write_text(compact, encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "model.onnx"
        graphs.write_onnx(model_in, source)
        for row, graph in tqdm(selected_graphs(options.export).items(), desc="export", leave=False):
            (out_dir / graph.form).parent.mkdir(exist_ok=True)
            write = partial(write_graph, graph, source, out_dir, texts, options.max_length)
            if gate and graph.bits < 32:
                whole[row] = gate.fit(write, out_dir, graph.form, graph.bits)
            else:
                write(())
            if graph.bits == 32:
                check_equivalent(
                    model_in, out_dir, graph.form, texts[:CHECKED_TEXTS], options.max_length
                )
    record_skipped_layers(out_dir, whole)
    return out_dir


def write_graph(
    graph: GraphFormat,
    source: Path,
    out_dir: Path,
    texts: list[str],
    max_length: int,
    whole: list[str],
) -> None:
    """One form, from the fp32 ONNX graph `source`; calibrated on `texts`, read by the tokenizer in `out_dir`."""
    graph.write(source, out_dir / graph.form, graphs.Calibration(out_dir, texts, max_length), whole)


def check_equivalent(
    model_in: Path, out_dir: Path, form: str, texts: list[str], max_length: int
) -> None:
    """Stop where a graph in full precision, read by its own tokenizer, does not give the checkpoint's logits."""
    ours, theirs = (
        predict_logits(load_engine(*which, max_length), texts)
        for which in ((out_dir, form), (model_in, "torch"))
    )
    if (worst := float(np.abs(ours - theirs).max())) > TOLERANCE:
        raise RuntimeError(
            f"{form} differs from {model_in} by {worst:.4f} in a logit; {TOLERANCE} is allowed"
        )
