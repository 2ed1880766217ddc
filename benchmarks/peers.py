"""Alternative ways to serve the same model: each tool with its default settings."""

from pathlib import Path

import numpy as np

from engines.engine import Engine, graph_engine
from engines.graphs import Calibration, suppress_output

INPUT_NAMES = ["input_ids", "attention_mask"]


def quantize_dynamic_with_defaults(source: Path, target: Path) -> None:
    """Write `onnxruntime.quantization.quantize_dynamic` of an fp32 ONNX graph."""
    from onnxruntime.quantization import quantize_dynamic

    with suppress_output():
        quantize_dynamic(source, target)


def nncf_quantize_with_defaults(source: Path, target: Path, calibration: Calibration) -> None:
    """Write `nncf.quantize` of an fp32 ONNX graph, without `model_type=TRANSFORMER`."""
    import nncf
    import openvino

    with suppress_output():
        model = nncf.quantize(
            openvino.convert_model(source), nncf.Dataset(list(calibration.batched(1)))
        )
        openvino.save_model(model, target)


def load_torch_bfloat16(
    model_dir: Path, format_name: str, max_length: int, threads: int, device: str
) -> Engine:
    """A checkpoint after `model.to(torch.bfloat16)`."""
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.set_num_threads(threads)
    model = AutoModelForSequenceClassification.from_pretrained(model_dir)
    model = model.to(torch.bfloat16).eval()

    def run(batch: dict[str, np.ndarray]) -> np.ndarray:
        tensors = {name: torch.from_numpy(batch[name]) for name in INPUT_NAMES}
        with torch.inference_mode():
            return model(**tensors).logits.float().numpy()

    return graph_engine(model_dir, max_length, INPUT_NAMES, run, grouping=None)


def load_openvino_with_defaults(
    model_dir: Path, format_name: str, max_length: int, threads: int, device: str
) -> Engine:
    """A graph after `compile_model`: float operations run in bf16 if the CPU supports it."""
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads}
    compiled = openvino.Core().compile_model(model_dir / format_name, "CPU", settings)
    request = compiled.create_infer_request()
    output = compiled.output(0)

    def run(batch: dict[str, np.ndarray]) -> np.ndarray:
        return request.infer(batch)[output].copy()

    return graph_engine(model_dir, max_length, INPUT_NAMES, run, grouping=None)
