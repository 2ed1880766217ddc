"""One tiny model in every format: checkpoint, quantized checkpoints, graphs, linear baseline."""

from collections.abc import Mapping
from pathlib import Path

from datasets import Dataset, DatasetDict
from tiny_models import (
    MAX_LENGTH,
    TEXTS,
    quantize_all,
    replace_config,
    save_pruned_model,
    save_tokenizer,
    sentences,
)

from compression_config import Options
from engines import graphs
from engines.engine import Engine, load_engine
from export import GRAPHS
from quantization import QUANTIZERS, format_row
from task import Task
from training import fit_linear


def row_names() -> list[str]:
    """The name of every format, as in the results."""
    names = ["torch", "linear", *GRAPHS]
    for method, quantizers in QUANTIZERS.items():
        names += [format_row(method, engine) for engine in quantizers]
    return names


def build_every_format(folder: Path) -> dict[str, tuple[Path, str]]:
    """Row -> (directory, format name) of every format of a BERT of width 128."""
    parent = folder / "parent"
    save_pruned_model("bert", parent, replace_config("bert", hidden_size=128))
    save_tokenizer("bert", parent)
    formats = {"torch": (parent, "torch")}
    for method, quantizers in QUANTIZERS.items():
        quantize_all(method, parent, folder / method)
        for engine in quantizers:
            formats[format_row(method, engine)] = (folder / method, engine)
    source = folder / "model.onnx"
    graphs.write_onnx(parent, source)
    calibration = graphs.Calibration(parent, sentences(32, seed=2), MAX_LENGTH)
    for row, graph in GRAPHS.items():
        target = parent / graph.format_name
        target.parent.mkdir(exist_ok=True)
        graph.write(source, target, calibration, ())
        formats[row] = (parent, graph.format_name)
    rows = Dataset.from_dict({"text": TEXTS, "label": [0, 1] * (len(TEXTS) // 2)})
    linear = folder / "linear"
    linear.mkdir()
    splits = DatasetDict(train=rows, validation=rows)
    fit_linear(parent, splits, Task(("0", "1"), False), linear, Options())
    formats["linear"] = (linear, "linear")
    return formats


def load_row(formats: Mapping[str, tuple[Path, str]], row: str) -> Engine:
    """The engine of a format, with one thread."""
    directory, format_name = formats[row]
    return load_engine(directory, format_name, MAX_LENGTH, threads=1)
