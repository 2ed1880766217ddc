"""Every option that a stage reads changes what the stage writes.

Each stage is made once with the base options, and once per option with another value of only that
option. The model files must differ; with equal options they are equal. Options that cannot change
the files are listed with the reason.
"""

import hashlib
import random
from dataclasses import replace
from pathlib import Path

import pytest
from builders import sentence
from datasets import Dataset, DatasetDict
from tiny_training import TASK, soft_splits, write_scratch_model

from compression_config import Options
from experiments.plan import STAGES, Rows
from runtime.files import HISTORY_NAME, read_json

BASE = Options(
    teacher_path="scratch:1x64",
    student_path="teacher:1",
    device="cpu",
    precision="fp32",
    teacher_lr=1e-3,
    lr=1e-3,
    teacher_epochs=2,
    epochs=2,
    fine_tune_epochs=2,
    qat_epochs=2,
    batch=8,
    max_length=32,
    trim_vocab="used",
    ffn_width=0.5,
    qat="int8",
    calibration_samples=36,  # more than the texts that a format is checked on
    export="onnx",
    quant_method="static",
)

OTHER = {
    "seed": 7,
    "max_length": 8,
    "batch": 4,
    "precision": "bf16",
    "weight_decay": 0.9,
    "warmup_ratio": 0.9,
    "class_weights": "balanced",
    "teacher_path": "scratch:2x64",
    "student_path": "scratch:1x64",
    "student_tokenizer": "teacher",
    "teacher_epochs": 1,
    "teacher_lr": 1e-2,
    "epochs": 1,
    "lr": 1e-2,
    "kd_alpha": 0.2,
    "kd_temperature": 5.0,
    "kd_method": "hidden",
    "prune_method": "wanda",
    "prune_sparsity": 0.6,
    "prune_schedule": "cubic",
    "prune_layers": "ffn",
    "fine_tune_epochs": 1,
    "calibration_samples": 44,
    "ffn_width": 0.25,
    "qat": "int4",
    "qat_epochs": 1,
    "quant_method": "fp16",
    "export": "openvino",
}

NO_EFFECT_ON_FILES = {  # option -> the stages (all if empty) that read it, and why
    "device": (),  # the same weights, computed elsewhere
    "accumulate": (),  # the same weights, computed in parts: tests/test_stages.py
    "max_f1_drop": (),  # it decides which formats are accepted: tests/test_gate.py
    "quant_auto": (),  # it acts on formats that lose too much: tests/test_gate.py
    "early_stopping_patience": (),  # it acts on the number of epochs: below
    "seed": ("tune",),  # selected with the other options of computation
    "precision": ("tune", "narrow"),  # inference is in full precision
    "batch": ("tune", "narrow"),  # of inference
    "trim_vocab": (),  # it acts on larger vocabularies: tests/test_structured_pruning.py
}

OTHER_BASE = {  # (stage, option) -> the base with which the option has an effect
    ("start", "seed"): {"student_path": "scratch:1x64"},
    ("start", "student_tokenizer"): {"student_path": "scratch:1x64"},
    ("plain", "student_tokenizer"): {"student_path": "scratch:1x64"},
    ("distill", "student_tokenizer"): {"student_path": "scratch:1x64"},
    ("prune", "calibration_samples"): {"prune_method": "wanda"},
}

CASES = []
for stage in STAGES:
    for option in set(stage.options) - stage.overrides.keys():
        stages = NO_EFFECT_ON_FILES.get(option)
        if stages is None or (stages and stage.name not in stages):
            CASES.append((stage.name, option))
CASES.sort()

BY_NAME = {stage.name: stage for stage in STAGES}


def rows(count: int, seed: int) -> Dataset:
    """Comments of 4 to 24 words; a quarter of them has label 1."""
    rng = random.Random(seed)
    labels = [int(i % 4 == 0) for i in range(count)]
    texts = []
    for i, label in enumerate(labels):
        words = [sentence(rng, label) for _ in range(rng.randint(1, 3))]
        texts.append(" ".join([*words, str(i)]))
    ids = [1000 * seed + i for i in range(count)]
    return Dataset.from_dict({"id": ids, "text": texts, "label": labels})


class Workshop:
    """Makes stages in a directory; models and rows are made once."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.splits = DatasetDict(train=rows(48, 1), validation=rows(24, 2))
        texts = self.splits["train"][:]["text"]
        self.teacher = write_scratch_model("scratch:2x64", texts, folder / "model")
        (folder / "outputs").mkdir()
        self.soft = soft_splits(self.teacher, self.splits, folder / "outputs")
        self.made: dict[tuple[str, Options], dict[str, str]] = {}
        self.count = 0

    def make(self, name: str, options: Options) -> Path:
        """The directory of a stage with these options."""
        stage = BY_NAME[name]
        self.count += 1
        out_dir = self.folder / f"{name}-{self.count}"
        out_dir.mkdir()
        splits = self.soft if stage.rows is Rows.SOFT else self.splits
        model_in = options.teacher_path if name == "teacher" else self.teacher
        stage.make(model_in, splits, TASK, out_dir, stage.selected_options(options))
        return out_dir

    def base(self, name: str, options: Options = BASE) -> dict[str, str]:
        """The files of a stage with the base options, which are made once."""
        if (name, options) not in self.made:
            self.made[name, options] = file_hashes(self.make(name, options))
        return self.made[name, options]


def file_hashes(directory: Path) -> dict[str, str]:
    """Name -> SHA-256 of every model file; checkpoints and the history are left out."""
    hashes = {}
    for path in sorted(directory.rglob("*")):
        is_state = "checkpoints" in path.parts or path.name == HISTORY_NAME
        if path.is_file() and not is_state:
            content = path.read_bytes()
            hashes[str(path.relative_to(directory))] = hashlib.sha256(content).hexdigest()
    return hashes


@pytest.fixture(scope="module")
def workshop(tmp_path_factory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("stages"))


@pytest.mark.parametrize("name", ["teacher", "distill", "prune", "qat", "narrow", "trim", "linear"])
def test_equal_options_write_equal_files(name, workshop):
    assert file_hashes(workshop.make(name, BASE)) == workshop.base(name)


@pytest.mark.parametrize("name, option", CASES)
def test_another_value_of_an_option_writes_other_files(name, option, workshop):
    base = replace(BASE, **OTHER_BASE.get((name, option), {}))
    changed = replace(base, **{option: OTHER[option]})
    assert file_hashes(workshop.make(name, changed)) != workshop.base(name, base)


@pytest.mark.parametrize("name", [stage.name for stage in STAGES if stage.is_trained])
def test_patience_is_the_number_of_epochs_without_a_better_score(name, workshop):
    epochs = {"teacher_epochs": 5, "epochs": 5, "fine_tune_epochs": 5, "qat_epochs": 5}
    still = replace(BASE, **epochs, teacher_lr=1e-12, lr=1e-12)
    for patience in (1, 3):
        options = replace(still, early_stopping_patience=patience)
        history = read_json(workshop.make(name, options) / HISTORY_NAME)
        assert len(history) == 1 + patience
