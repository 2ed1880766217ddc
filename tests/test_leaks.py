"""Every stage reads only the splits that it may see. The words of the three splits are in different
alphabets, so that a text, a token or a character shows where it comes from."""

import random
import unicodedata
from dataclasses import replace

import pytest
from builders import write_csv
from measuring import quick_measuring
from tiny_training import run_arguments, write_scratch_model
from transformers import AutoTokenizer

import pruning
from compression_config import Options
from corpus.columns import read_corpus
from data import split_corpus
from engines import graphs, sensitivity
from experiments import plan, stages
from main import main
from pruning import trim_vocabulary
from task import Task

ALPHABETS = {"train": "LATIN", "validation": "GREEK", "test": "CYRILLIC"}

WORDS = {
    "train": (["good", "kind", "warm"], ["bad", "cruel", "vile"], ["river", "house", "road", "we"]),
    "validation": (["καλό", "ζεστό"], ["κακό", "σκληρό"], ["ποτάμι", "σπίτι", "δρόμος", "εμείς"]),
    "test": (["добро", "тепло"], ["плохо", "зло"], ["река", "дом", "дорога", "мы"]),
}

ROWS = {"train": 96, "validation": 32, "test": 32}

EVERY_STAGE = (
    "--pipeline kd_prune_quant --teacher_path scratch:2x64 --teacher_epochs 1 --epochs 1 "
    "--fine_tune_epochs 1 --qat_epochs 1 --batch 16 --max_length 32 --precision fp32 "
    "--trim_vocab used --ffn_width 0.5 --kd_baseline --augment 1 --prune_method wanda "
    "--qat int8 --tune_threshold --quant_method static --export openvino --calibration_samples 16 "
    "--quant_auto --max_f1_drop 0.5"
)


def text_of(split: str, label: int, rng: random.Random) -> str:
    words = rng.choices(WORDS[split][2], k=rng.randint(3, 8))
    return " ".join([*words, rng.choice(WORDS[split][label])])


def alphabets_in(texts: list[str]) -> set[str]:
    """The names of the alphabets of all letters: {"LATIN", "GREEK"}."""
    letters = {char for text in texts for char in text if char.isalpha()}
    return {unicodedata.name(letter).split()[0] for letter in letters}


def all_texts() -> list[str]:
    rng = random.Random(1)
    return [text_of(split, i % 2, rng) for split in WORDS for i in range(20)]


@pytest.fixture(scope="module")
def split_csv(tmp_path_factory):
    rng = random.Random(0)
    rows = []
    for split, count in ROWS.items():
        rows += [(text_of(split, i % 2, rng), i % 2, split) for i in range(count)]
    path = tmp_path_factory.mktemp("leaks") / "file.csv"
    return write_csv(path, ["comment", "label", "split"], rows)


@pytest.fixture(scope="module")
def seen(split_csv, tmp_path_factory, in_measuring_process):
    """What a run with every stage hands over: a name -> alphabets, or for a stage, its splits'."""
    seen = {}

    def spy_on_texts(patch, module, function_name, position):
        function = getattr(module, function_name)

        def spy(*arguments, **keywords):
            texts = arguments[position]
            texts = texts[:]["text"] if hasattr(texts, "column_names") else texts
            seen.setdefault(function_name, set()).update(alphabets_in(texts))
            return function(*arguments, **keywords)

        patch.setattr(module, function_name, spy)

    def spied(stage):
        def make(model_in, splits, task, out_dir, options):
            alphabets = {name: alphabets_in(split[:]["text"]) for name, split in splits.items()}
            seen[stage.name] = alphabets
            return stage.make(model_in, splits, task, out_dir, options)

        return replace(stage, make=make)

    class SpiedGate(sensitivity.QualityGate):
        def __init__(self, *arguments, validation_texts, ranking_texts, **keywords):
            seen["gate: choices"] = alphabets_in(validation_texts)
            seen["gate: ranking"] = alphabets_in(ranking_texts)
            super().__init__(
                *arguments,
                validation_texts=validation_texts,
                ranking_texts=ranking_texts,
                **keywords,
            )

    output = tmp_path_factory.mktemp("output")
    with pytest.MonkeyPatch.context() as patch, quick_measuring(in_measuring_process):
        patch.setattr(plan, "STAGES", tuple(spied(stage) for stage in plan.STAGES))
        patch.setattr(sensitivity, "QualityGate", SpiedGate)
        spy_on_texts(patch, graphs, "Calibration", 1)
        spy_on_texts(patch, pruning, "token_batches_of", 0)
        spy_on_texts(patch, stages, "write_teacher_outputs", 1)
        assert main(run_arguments(split_csv, output, EVERY_STAGE)) == 0
    seen["tokens"] = alphabets_of_tokens(output / "models" / "run" / "teacher")
    return seen


def alphabets_of_tokens(model_dir) -> set[str]:
    """The alphabets of the tokens that are longer than a character: characters always stay."""
    tokens = AutoTokenizer.from_pretrained(model_dir).get_vocab()
    return alphabets_in([token for token in tokens if len(token.removeprefix("##")) > 1])


def test_every_stage_is_handed_only_its_splits_and_never_a_test_text(seen):
    for stage in plan.STAGES:
        assert seen[stage.name] == {name: {ALPHABETS[name]} for name in stage.splits}, stage.name
        assert "test" not in stage.splits


def test_tokenizers_and_calibration_read_training_texts_only(seen):
    assert seen["tokens"] == {"LATIN"}
    assert seen["Calibration"] == {"LATIN"}
    assert seen["token_batches_of"] == {"LATIN"}


def test_the_teacher_labels_training_and_validation_texts_only(seen):
    assert seen["write_teacher_outputs"] == {"LATIN", "GREEK"}


def test_the_gate_chooses_on_validation_texts_and_ranks_layers_on_training_texts(seen):
    assert seen["gate: choices"] == {"GREEK"}
    assert seen["gate: ranking"] == {"LATIN"}


def test_stages_that_choose_nothing_are_handed_one_split():
    splits = {}
    for step in plan.plan(
        Options(
            pipeline="kd_prune_quant",
            student_path="teacher:1",
            trim_vocab="used",
            ffn_width=0.5,
            tune_threshold=True,
            export="all",
        )
    ):
        splits[step.stage.name] = step.splits
    for name in ("linear", "start", "narrow", "quantize", "export"):
        assert splits[name] == ("train",)
    assert splits["tune"] == ("validation",)


def test_a_trimmed_vocabulary_has_the_tokens_of_training_texts_only(split_csv, tmp_path):
    options = Options(dataset_path=str(split_csv), trim_vocab="used")
    splits = split_corpus(read_corpus(options), options)
    model_in = write_scratch_model("scratch:1x64", all_texts(), tmp_path / "model")
    assert alphabets_of_tokens(model_in) == {"LATIN", "GREEK", "CYRILLIC"}
    (tmp_path / "trimmed").mkdir()
    trim_vocabulary(model_in, splits, Task(("0", "1"), False), tmp_path / "trimmed", options)
    assert alphabets_of_tokens(tmp_path / "trimmed") == {"LATIN"}
