"""Int8 as the first page of each tool's manual has it: what our graphs are compared with."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from engines.graphs import Calibration, suppress_output


def plain_dynamic(source: Path, target: Path) -> None:
    """What `onnxruntime.quantization.quantize_dynamic` makes of an fp32 graph with its defaults."""
    from onnxruntime.quantization import quantize_dynamic

    with suppress_output():
        quantize_dynamic(source, target)


def plain_nncf(source: Path, target: Path, calibration: Calibration) -> None:
    """What `nncf.quantize` makes of it with its defaults: it is not told that the model is a transformer."""
    import nncf
    import openvino

    with suppress_output():
        model = nncf.quantize(
            openvino.convert_model(source), nncf.Dataset(list(calibration.batched(1)))
        )
        openvino.save_model(model, target)
