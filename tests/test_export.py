"""Every exported form of five tiny families and three sizes of head: it reloads afresh, agrees,
and is smaller."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from test_quantization import (
    CONFIGS,
    FAMILIES,
    MAX_LENGTH,
    TEXTS,
    TOLERANCE,
    Lab,
    lab,  # noqa: F401
    replace_config,
    save_pruned_model,
    save_tokenizer,
    sentences,
)
from transformers import AutoTokenizer

import compression_config
from compression_config import Options, UserError, check_installed
from engines.engine import formats_in, load_engine, predict_logits, read_tokenizer, serving_files
from engines.parameter_counts import count_parameters
from export import (
    GRAPHS,
    REQUIREMENTS,
    check_equivalent,
    export,
    required_packages,
    selected_graphs,
)
from quantization import QUANTIZERS
from task import Task

# bits -> largest mean |difference| of logits; more than the torch form's in 4 bits, whose embeddings stay whole
LARGEST = {32: 1e-5, 8: TOLERANCE["static"], 4: 0.2}


def exported(lab: Lab, family: str, engine: str = "all", parent: Path | None = None) -> Path:  # noqa: F811
    parent = parent or lab.parent(family)
    out = parent.with_name(f"{parent.name}-export-{engine}")
    if not out.exists():
        out.mkdir()
        train = Dataset.from_dict({"text": sentences(40, seed=3), "label": [0, 1] * 20})
        options = Options(export=engine, calibration_samples=32, max_length=MAX_LENGTH)
        export(
            parent,
            DatasetDict(train=train, validation=train),
            Task(("a", "b"), False),
            out,
            options,
        )
    return out


@pytest.mark.parametrize("row", GRAPHS)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_exported_form_reloads_and_agrees_with_its_parent(lab, family, row):  # noqa: F811
    graph, directory = GRAPHS[row], exported(lab, family)
    expected = predict_logits(
        load_engine(lab.parent(family), "torch", MAX_LENGTH, threads=1), TEXTS
    )
    logits = predict_logits(load_engine(directory, graph.form, MAX_LENGTH, threads=1), TEXTS)
    assert logits.dtype == np.float32
    assert np.abs(logits - expected).mean() < LARGEST[graph.bits]


@pytest.mark.parametrize("row", GRAPHS)
@pytest.mark.parametrize("family", FAMILIES)
def test_weights_of_a_graph_are_counted_as_the_model_has_them_and_its_zeros_stay(lab, family, row):  # noqa: F811
    parent, counts = (
        count_parameters(lab.parent(family), "torch"),
        count_parameters(exported(lab, family), GRAPHS[row].form),
    )
    norms = (
        parent.parameters - counts.parameters
    )  # OpenVINO leaves out products with ones: untrained norms
    assert norms == 0 or (row.startswith("openvino") and 0 < norms <= 6 * 64)
    assert counts.nonzeros <= parent.nonzeros and counts.sparsity >= parent.sparsity


@pytest.mark.parametrize("family", FAMILIES)
def test_fewer_bits_are_fewer_bytes(lab, family):  # noqa: F811  (in models so tiny much is shape and scale)
    def size(directory: Path, form: str) -> int:
        return sum(
            path.stat().st_size
            for path in serving_files(directory, form)
            if path.suffix in (".onnx", ".bin")
        )

    directory = exported(lab, family)
    sizes = {row: size(directory, graph.form) for row, graph in GRAPHS.items()}
    for row, graph in GRAPHS.items():
        if graph.bits < 32:
            assert sizes[row] < 0.6 * sizes[row.split("-")[0]]


def test_the_layout_is_the_hubs(lab):  # noqa: F811
    directory = exported(lab, "bert")
    assert formats_in(directory) == sorted(graph.form for graph in GRAPHS.values())
    assert {"onnx/model.onnx", "onnx/model_quantized.onnx", "openvino/openvino_model.xml"} <= set(
        formats_in(directory)
    )
    served = {path for form in formats_in(directory) for path in serving_files(directory, form)}
    assert served == {path for path in directory.rglob("*") if path.is_file()}
    assert formats_in(exported(lab, "bert", "onnx")) == [
        form for form in formats_in(directory) if form[:4] == "onnx"
    ]


@pytest.mark.parametrize("family", CONFIGS)
def test_the_graphs_tokenizer_gives_what_transformers_gives(lab, family):  # noqa: F811
    texts = [*TEXTS, "", "?", "ba\u200bbe  ba\n", " ".join(TEXTS[:9]), "বাংলা ba"]
    tokenize, _ = read_tokenizer(lab.parent(family), MAX_LENGTH)
    theirs = AutoTokenizer.from_pretrained(lab.parent(family))(
        texts, truncation=True, max_length=MAX_LENGTH
    )
    assert tokenize(texts) == theirs["input_ids"]


def test_a_graph_that_differs_from_its_checkpoint_stops_the_run(lab):  # noqa: F811
    with pytest.raises(RuntimeError, match="differs from .* in a logit"):
        check_equivalent(
            lab.parent("bert"), exported(lab, "bert"), GRAPHS["onnx-int4"].form, TEXTS, MAX_LENGTH
        )


def test_layers_named_whole_keep_full_precision(lab, tmp_path):  # noqa: F811
    source, layer = (
        exported(lab, "bert") / "onnx" / "model.onnx",
        "bert.encoder.layer.1.output.dense",
    )
    for row in ("onnx-int8", "onnx-static", "onnx-int4", "openvino-int8", "openvino-int4"):
        sizes = []
        for whole in ((), (layer,)):
            target = tmp_path / Path(GRAPHS[row].form).name
            calibration = export.graphs.Calibration(lab.parent("bert"), TEXTS, MAX_LENGTH)
            GRAPHS[row].write(source, target, calibration, whole)
            weights = target.with_suffix(".bin") if row.startswith("openvino") else target
            sizes.append(weights.stat().st_size)
        saved = 64 * 128 * (4 - GRAPHS[row].bits / 8)
        assert sizes[1] - sizes[0] == pytest.approx(saved, rel=0.2), row


def test_ranges_are_those_of_all_texts_however_few_are_measured_at_once(lab, tmp_path, monkeypatch):  # noqa: F811
    """The middle part holds the extremes of some activations; parts of one batch must give what
    one of all gives."""
    source, found = exported(lab, "bert") / "onnx" / "model.onnx", []
    texts = [*TEXTS[:9], *(" ".join(TEXTS[9:])[:40] for _ in range(9)), *TEXTS[10:19]]
    for at_once in (64, 1):
        monkeypatch.setattr(export.graphs, "BATCHES_AT_ONCE", at_once)
        folder = tmp_path / str(at_once)
        folder.mkdir()
        calibration = export.graphs.Calibration(lab.parent("bert"), texts, MAX_LENGTH)
        found.append(
            json.loads(export.graphs._write_ranges(source, calibration, folder).read_text())
        )
    assert len(found[0]) > 3 and found[0] == found[1]
    alone = export.graphs.Calibration(lab.parent("bert"), texts[-3:], MAX_LENGTH)
    assert json.loads(export.graphs._write_ranges(source, alone, tmp_path).read_text()) != found[0]


@pytest.mark.parametrize("engine", REQUIREMENTS)
def test_a_missing_package_is_refused_in_one_line(monkeypatch, engine):
    package = REQUIREMENTS[engine][1]
    found = compression_config.find_spec
    monkeypatch.setattr(
        compression_config, "find_spec", lambda name: None if name == package else found(name)
    )
    with pytest.raises(UserError) as refusal:
        check_installed("--export", engine, required_packages(engine))
    assert (
        str(refusal.value)
        == f"--export is {engine}, but must have {package}: pip install {package}"
    )


def test_nothing_is_missing_here():
    check_installed("--export", "all", required_packages("all"))
    assert selected_graphs("none") == {} and selected_graphs("all") == GRAPHS


RELOAD = """
import json, sys
sys.path[:0] = {path!r}
import numpy as np
from engines import load, predict_logits
texts, forms = json.load(sys.stdin)
for directory, form, to in forms:
    np.save(to, predict_logits(load(directory, form, 64, threads=1), texts))
"""


@pytest.mark.slow
@pytest.mark.parametrize("labels", [2, 3, 7])
def test_every_form_of_every_family_and_head_reloads_in_a_fresh_process(tmp_path, labels):
    jobs, expected, allowed = [], {}, {}
    for family in FAMILIES:
        parent = tmp_path / family
        save_pruned_model(family, parent, replace_config(family, num_labels=labels))
        save_tokenizer(family, parent)
        expected[family] = predict_logits(
            load_engine(parent, "torch", MAX_LENGTH, threads=1), TEXTS
        )
        for method in QUANTIZERS:
            out = tmp_path / f"{family}-{method}"
            for quantizer in QUANTIZERS[method].values():
                quantizer(parent, out, sentences(32, seed=2), MAX_LENGTH)
            jobs += [(out, engine, f"{family}.{method}.{engine}") for engine in QUANTIZERS[method]]
            allowed |= {
                f"{family}.{method}.{engine}": TOLERANCE[method] for engine in QUANTIZERS[method]
            }
        directory = exported(None, family, parent=parent)
        jobs += [(directory, graph.form, f"{family}.{row}") for row, graph in GRAPHS.items()]
        allowed |= {f"{family}.{row}": LARGEST[graph.bits] for row, graph in GRAPHS.items()}
    given = json.dumps(
        [TEXTS, [(str(path), form, str(tmp_path / f"{name}.npy")) for path, form, name in jobs]]
    )
    script = RELOAD.format(path=[str(Path(export.__file__).parent)])
    subprocess.run(
        [sys.executable, "-c", script], input=given, text=True, check=True, capture_output=True
    )
    for _, _, name in jobs:
        logits, parents = np.load(tmp_path / f"{name}.npy"), expected[name.split(".")[0]]
        assert logits.shape == (len(TEXTS), labels)
        assert np.abs(logits - parents).mean() < allowed[name], name
