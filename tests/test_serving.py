"""The logits of a text do not depend on other threads or on the other texts of its batch."""

import json
import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from all_formats import build_every_format, load_row, row_names
from tiny_models import TinyModels, sentences

from encoders.pretrained import load_tokenizer
from engines.engine import (
    in_groups,
    make_collate,
    onnx_grouping,
    openvino_grouping,
    rows_of_equal_length,
    single_rows,
)
from task import probabilities

THREADS = 8
CALLS = 1000  # per thread, with an fp32 format of an engine
CALLS_QUANTIZED = 100  # per thread, with the others
FP32_ROWS = ("torch", "onnx", "openvino", "linear")
NUM_BATCHES = 40
MAX_CHANGE = 1e-5  # of a probability


@pytest.fixture(scope="module")
def formats(tmp_path_factory):
    return build_every_format(tmp_path_factory.mktemp("serving"))


def mixed_batches() -> list[list[str]]:
    """Batches of 1 to 8 texts of 1 to 20 words."""
    rng = random.Random(0)
    texts = sorted(sentences(60, seed=1), key=len)[:40]
    return [rng.choices(texts, k=rng.randint(1, 8)) for _ in range(NUM_BATCHES)]


@pytest.mark.parametrize("row", row_names())
def test_eight_threads_get_the_answers_of_one_thread(formats, row):
    engine = load_row(formats, row)
    batches = mixed_batches()
    expected = [engine.forward(engine.encode(texts)) for texts in batches]
    calls = CALLS if row in FP32_ROWS else CALLS_QUANTIZED

    def count_wrong_answers(seed: int) -> int:
        rng = random.Random(seed)
        wrong = 0
        for _ in range(calls):
            index = rng.randrange(NUM_BATCHES)
            logits = engine.forward(engine.encode(batches[index]))
            is_equal = logits.shape == expected[index].shape and np.allclose(
                logits, expected[index], rtol=0, atol=1e-6
            )
            wrong += not is_equal
        return wrong

    with ThreadPoolExecutor(THREADS) as pool:
        assert sum(pool.map(count_wrong_answers, range(THREADS))) == 0


@pytest.mark.parametrize("row", row_names())
def test_a_text_alone_has_the_probabilities_that_it_has_among_32_others(formats, row):
    engine = load_row(formats, row)
    texts = sentences(33, seed=7)
    together = engine.forward(engine.encode(texts))
    alone = np.concatenate([engine.forward(engine.encode([text])) for text in texts])
    change = probabilities(alone, False) - probabilities(together, False)
    assert np.abs(change).max() < MAX_CHANGE


GROUPINGS = {
    "onnx/model.onnx": None,
    "onnx/model_quantized.onnx": single_rows,
    "onnx/model_static.onnx": rows_of_equal_length,
    "onnx/model_q4.onnx": single_rows,
    "openvino/openvino_model.xml": None,
    "openvino/openvino_model_qint8_quantized.xml": rows_of_equal_length,
    "openvino/openvino_model_qint4_quantized.xml": rows_of_equal_length,
}


def test_every_graph_is_computed_in_the_groups_that_its_operators_require(formats):
    directory, _ = formats["torch"]
    found = {}
    for format_name in GROUPINGS:
        grouping_of = onnx_grouping if format_name.startswith("onnx") else openvino_grouping
        found[format_name] = grouping_of(directory / format_name)
    assert found == GROUPINGS


@pytest.mark.parametrize(
    ("grouping", "expected"),
    [
        (None, [[[5, 6, 0], [7, 8, 9], [3, 4, 0]]]),
        (rows_of_equal_length, [[[5, 6], [3, 4]], [[7, 8, 9]]]),
        (single_rows, [[[5, 6]], [[7, 8, 9]], [[3, 4]]]),
    ],
)
def test_groups_have_no_padding_and_their_logits_are_in_the_order_of_the_rows(grouping, expected):
    seen = []

    def forward(batch):
        seen.append(batch["input_ids"].tolist())
        return batch["input_ids"][:, :1].astype(np.float32)

    logits = in_groups(forward, grouping)(make_collate(0)([[5, 6], [7, 8, 9], [3, 4]]))
    assert logits[:, 0].tolist() == [5, 7, 3]
    assert seen == expected


def test_a_tokenizer_that_pads_on_the_left_pads_on_the_right_after_loading(tmp_path):
    parent = TinyModels(tmp_path).parent("bert")
    path = parent / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"padding_side": "left"}))
    tokenizer = load_tokenizer(str(parent), "--teacher_path")
    tokenizer.save_pretrained(tmp_path / "saved")
    assert tokenizer(["ba be", "ba"], padding=True)["attention_mask"][1] == [1, 1, 1, 0]
    saved = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    assert saved["padding_side"] == "right"


def test_a_text_without_tokens_is_computed_as_one_masked_token():
    seen = []

    def forward(batch):
        seen.append(batch["attention_mask"].tolist())
        return np.zeros((len(batch["input_ids"]), 2), np.float32)

    in_groups(forward, single_rows)(make_collate(0)([[5, 6], []]))
    assert sorted(seen) == [[[0]], [[1, 1]]]
    assert make_collate(0)([[], []])["input_ids"].tolist() == [[0], [0]]
