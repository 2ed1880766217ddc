"""Every stage on a tiny model of every supported family; `python tests/family_matrix.py` prints the
results as a table."""

import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # as a script

from tiny_families import TASK, random_texts, save_family, splits_of  # noqa: E402
from transformers import AutoModelForSequenceClassification, AutoTokenizer  # noqa: E402

from compression_config import Options  # noqa: E402
from encoders.families import position_limit  # noqa: E402
from encoders.family_table import SUPPORTED  # noqa: E402
from encoders.pretrained import read_config  # noqa: E402
from encoders.start import check_start, save_model, start_student  # noqa: E402
from engines.engine import load_engine, predict_logits  # noqa: E402
from engines.fake_quantization import convert_qat_, prepare_qat_  # noqa: E402
from export import GRAPHS, export  # noqa: E402
from pruning import narrow_ffn, prune, trim_vocabulary  # noqa: E402
from quantization import QUANTIZERS, quantize  # noqa: E402

MAX_LENGTH = 64
SHAPE = {  # heads of 32; 4-bit weights have blocks of 64
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
}
TEXTS = random_texts(32, seed=3)
SPLITS = splits_of(TEXTS)

# largest mean difference of the logits, in standard deviations of the parent's
TOLERANCES = {32: 1e-4, 16: 0.01, 8: 0.3, 4: 3.0}


def options(**changes) -> Options:
    """Options of a stage on the CPU, without training."""
    return Options(
        max_length=MAX_LENGTH,
        batch=16,
        device="cpu",
        precision="fp32",
        calibration_samples=16,
        fine_tune_epochs=0,
        student_path="teacher:1",
        **changes,
    )


def logits(directory: Path, format_name: str = "torch", texts: list[str] = TEXTS) -> np.ndarray:
    return predict_logits(load_engine(directory, format_name, MAX_LENGTH, threads=1), texts)


def assert_close(parent: Path, directory: Path, format_name: str, bits: int) -> None:
    """The logits of a format agree with its parent's as well as its bits allow."""
    expected = logits(parent)
    difference = np.abs(logits(directory, format_name) - expected).mean() / expected.std()
    assert difference < TOLERANCES[bits], f"{format_name} differs by {difference:.3f}"


# The stages: each reads the model directory `parent` and writes to the new directory `out_dir`


def load(parent: Path, out_dir: Path) -> None:
    """The checks before training; padding changes no logit; the position limit is exact."""
    check_start(str(parent), "--teacher_path", TASK, MAX_LENGTH)
    alone = [logits(parent, texts=[text]) for text in TEXTS[:4]]
    assert np.allclose(np.concatenate(alone), logits(parent, texts=TEXTS[:4]), atol=1e-5)
    limit = position_limit(read_config(str(parent), "--teacher_path"))
    long_text = [" ".join(TEXTS)]
    longest = predict_logits(load_engine(parent, "torch", limit, threads=1), long_text)
    assert np.isfinite(longest).all()


def distill(parent: Path, out_dir: Path) -> None:
    """A student of one layer of the teacher is saved completely, and can be trained."""
    student, tokenizer = start_student("teacher:1", parent, TASK, TEXTS, MAX_LENGTH)
    train_step(student, tokenizer)
    save_model(student, tokenizer, out_dir)
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        expected = student.eval()(**inputs).logits.numpy()
    assert np.allclose(logits(out_dir), expected, atol=1e-5)


def train_step(model: torch.nn.Module, tokenizer) -> None:
    """One forward and one backward pass; every encoder Linear gets a gradient."""
    inputs = tokenizer(TEXTS[:4], padding=True, return_tensors="pt")
    loss = model.train()(**inputs, labels=torch.tensor([0, 1, 0, 1])).loss
    loss.backward()
    assert torch.isfinite(loss)


def trim(parent: Path, out_dir: Path) -> None:
    """Without its unused tokens the model gives the same logits."""
    trim_vocabulary(parent, SPLITS, TASK, out_dir, options(trim_vocab="used"))
    assert np.allclose(logits(out_dir), logits(parent), atol=1e-5)
    rows = AutoModelForSequenceClassification.from_pretrained(out_dir).config.vocab_size
    assert rows == len(AutoTokenizer.from_pretrained(out_dir))


def narrow(parent: Path, out_dir: Path) -> None:
    """Half of the feed-forward neurons are removed."""
    narrow_ffn(parent, SPLITS, TASK, out_dir, options(ffn_width=0.5))
    assert np.isfinite(logits(out_dir)).all()


def prune_by(method: str, parent: Path, out_dir: Path) -> None:
    """40 % of the encoder's weights are zero; the stage itself counts them."""
    prune(parent, SPLITS, TASK, out_dir, options(prune_method=method))
    assert np.isfinite(logits(out_dir)).all()


def qat(parent: Path, out_dir: Path) -> None:
    """The model can be trained with fake 4-bit quantization, and is saved as a plain one."""
    model = AutoModelForSequenceClassification.from_pretrained(parent)
    tokenizer = AutoTokenizer.from_pretrained(parent)
    prepare_qat_(model, 4)
    train_step(model, tokenizer)
    convert_qat_(model, 4)
    save_model(model, tokenizer, out_dir)
    assert np.isfinite(logits(out_dir)).all()


QUANTIZED_BITS = {"fp16": 16, "dynamic": 8, "static": 8, "int4": 4}


def quantize_to(method: str, parent: Path, out_dir: Path) -> None:
    """Every format of `--quant_method`."""
    quantize(parent, SPLITS, TASK, out_dir, options(quant_method=method))
    for engine in QUANTIZERS[method]:
        assert_close(parent, out_dir, engine, QUANTIZED_BITS[method])


def export_to(engine: str, parent: Path, out_dir: Path) -> None:
    """Every graph of `--export`; the stage compares the fp32 graph with torch."""
    export(parent, SPLITS, TASK, out_dir, options(export=engine))
    for row, graph in GRAPHS.items():
        if row.startswith(engine):
            assert_close(parent, out_dir, graph.format_name, graph.bits)


QUICK_STAGES: dict[str, Callable[[Path, Path], None]] = {
    "load": load,
    "distill": distill,
    "trim": trim,
    "narrow": narrow,
    "magnitude": partial(prune_by, "magnitude"),
    "wanda": partial(prune_by, "wanda"),
    "qat": qat,
}
SLOW_STAGES: dict[str, Callable[[Path, Path], None]] = {
    **{method: partial(quantize_to, method) for method in QUANTIZED_BITS},
    "onnx": partial(export_to, "onnx"),
    "openvino": partial(export_to, "openvino"),
}


def run_stages(
    family: str, stages: dict[str, Callable[[Path, Path], None]], folder: Path
) -> dict[str, str]:
    """Stage -> "yes", or the first line of the error, for a tiny model of the family."""
    parent = save_family(family, folder / family, SHAPE)
    outcomes = {}
    for name, stage in stages.items():
        out_dir = folder / f"{family}-{name}"
        out_dir.mkdir()
        try:
            stage(parent, out_dir)
            outcomes[name] = "yes"
        except Exception as error:  # any failure of a stage is a result here
            message = (str(error).strip() or type(error).__name__).splitlines()[0]
            outcomes[name] = f"{type(error).__name__}: {message}"
    return outcomes


def main(families: list[str]) -> None:
    """Print the table in Markdown."""
    stages = QUICK_STAGES | SLOW_STAGES
    print("| family |", " | ".join(stages), "|")
    print("|---|" + "---|" * len(stages))
    for family in families or SUPPORTED:
        with tempfile.TemporaryDirectory() as folder:
            outcomes = run_stages(family, stages, Path(folder))
        print(f"| {family} |", " | ".join(outcomes.values()), "|", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
