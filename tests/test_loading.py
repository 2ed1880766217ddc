"""What is loaded as teacher, student or served model: every weight is read, or it is refused."""

import json
import logging
import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_families import TASK, family_tokenizer, save_family, splits_of
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import benchmark
import inference
from compression_config import Options
from encoders.loading import load_weights
from encoders.model_files import UnusableModel
from encoders.pretrained import check_tokenizer, load_pretrained
from encoders.saved_models import load_saved_model
from encoders.specs import check_spec
from encoders.start import save_model
from engines.classifier import read_labels
from engines.engine import load_engine, predict_logits, read_tokenizer
from experiments.checks import check_runs
from runtime.errors import UserError
from task import Task
from training import fine_tune_teacher

MAX_LENGTH = 64
TEXTS = ["river house", "unhappy road sang quickly", "slow"]
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 442000000\n"


@pytest.fixture(scope="module")
def intact(tmp_path_factory) -> Path:
    """A tiny BERT classifier that nothing is wrong with."""
    directory = save_family("bert", tmp_path_factory.mktemp("intact") / "bert")
    change_weight(directory, "classifier.bias", torch.tensor([0.25, -0.5]))
    return directory


@pytest.fixture
def model_dir(intact, tmp_path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(intact, tmp_path / "model"))


def change_config(directory: Path, **changes) -> None:
    path = directory / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | changes))


def rename_weights(directory: Path, rename) -> None:
    """Rename every tensor with `rename`; None drops it."""
    path = directory / "model.safetensors"
    renamed = {}
    for name, tensor in load_file(path).items():
        if rename(name):
            renamed[rename(name)] = tensor
    save_file(renamed, path, {"format": "pt"})


def change_weight(directory: Path, name: str, tensor: torch.Tensor) -> None:
    path = directory / "model.safetensors"
    save_file(load_file(path) | {name: tensor}, path, {"format": "pt"})


def check_run(**options) -> None:
    """The checks of a run before any training."""
    check_runs([Options(max_length=MAX_LENGTH, **options)], TASK)


def refusal(**options) -> str:
    with pytest.raises(UserError) as raised:
        check_run(**options)
    (line,) = raised.value.lines
    return line


# The damages: each returns what the refusal says


def foreign_names(directory: Path) -> str:
    rename_weights(directory, lambda name: f"teacher_of_mine.{name}")
    return "of the 41 tensors that its config.json describes, the first is"


def other_family(directory: Path) -> str:
    change_config(directory, model_type="distilbert")
    return "describes, the first is distilbert.embeddings"


def more_layers(directory: Path) -> str:
    change_config(directory, num_hidden_layers=3)
    return "the first is bert.encoder.layer.2.attention.output.LayerNorm.bias"


def fewer_layers(directory: Path) -> str:
    change_config(directory, num_hidden_layers=1)
    return "its config.json has no place for 16 of the encoder tensors"


def other_width(directory: Path) -> str:
    change_config(directory, intermediate_size=50)
    return "bert.encoder.layer.0.intermediate.dense.bias: [48] instead of [50]"


def missing_tensor(directory: Path) -> str:
    rename_weights(directory, lambda name: "" if "1.output.dense.weight" in name else name)
    return "1 of the 41 tensors"


def not_a_number(directory: Path) -> str:
    weight = torch.zeros(48)
    weight[7] = float("nan")
    change_weight(directory, "bert.encoder.layer.0.intermediate.dense.bias", weight)
    return "NaN or infinite values in 1 of the tensors, the first is bert.encoder.layer.0.inter"


def infinite(directory: Path) -> str:
    change_weight(directory, "bert.pooler.dense.bias", torch.full((32,), -torch.inf))
    return "its weights have NaN or infinite values in 1 of the tensors"


def heads_that_do_not_divide(directory: Path) -> str:
    change_config(directory, num_attention_heads=3)
    return "a hidden_size of 32, which its 3 attention heads do not divide"


def config_of_text(directory: Path) -> str:
    (directory / "config.json").write_text("BERT, 2 layers")
    return "its config.json cannot be read as a JSON object"


def config_of_a_list(directory: Path) -> str:
    (directory / "config.json").write_text("[1, 2]")
    return "its config.json cannot be read as a JSON object"


def labels_in_a_list(directory: Path) -> str:
    change_config(directory, id2label=["0", "1"])
    return "whose config.json cannot be read"


def truncated(directory: Path) -> str:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    return "its model.safetensors is damaged or incomplete"


def empty_weights(directory: Path) -> str:
    (directory / "model.safetensors").write_bytes(b"")
    return "its model.safetensors is damaged or incomplete"


def lfs_pointer(directory: Path) -> str:
    (directory / "model.safetensors").write_bytes(LFS_POINTER)
    return "its model.safetensors is only a Git LFS pointer; run git lfs pull"


def lfs_tokenizer(directory: Path) -> str:
    (directory / "tokenizer.json").write_bytes(LFS_POINTER)
    return "its tokenizer.json is only a Git LFS pointer"


def weights_that_are_a_folder(directory: Path) -> str:
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors").mkdir()
    return "its model.safetensors cannot be read: Is a directory"


def missing_shard(directory: Path) -> str:
    (directory / "model.safetensors").unlink()
    index = {
        "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002.safetensors"}
    }
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return "2 of the 2 weight files that model.safetensors.index.json names are missing"


def shard_elsewhere(directory: Path) -> str:
    (directory / "model.safetensors").unlink()
    index = {"weight_map": {"a": "../other/model.safetensors"}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return "names files outside of that directory"


def adapter(directory: Path) -> str:
    (directory / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    return "that directory has an adapter (adapter_config.json), not a model"


def gptq(directory: Path) -> str:
    change_config(directory, quantization_config={"quant_method": "gptq", "bits": 4})
    return "its weights are quantized (gptq); give the full-precision model"


def integer_weights(directory: Path) -> str:
    name = "bert.encoder.layer.0.output.dense.weight"
    change_weight(directory, name, torch.ones(32, 48, dtype=torch.int8))
    return f"tensors of type I8, such as {name}"


def only_graphs(directory: Path) -> str:
    (directory / "model.safetensors").unlink()
    (directory / "onnx").mkdir()
    (directory / "onnx" / "model_static.onnx").touch()
    return "has no model.safetensors, only graphs; give the full-precision model"


def no_tokenizer(directory: Path) -> str:
    for path in directory.glob("tokenizer*"):
        path.unlink()
    return "that directory has no tokenizer"


def empty_vocabulary(directory: Path) -> str:
    no_tokenizer(directory)
    (directory / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n")
    return "its tokenizer has a vocabulary of only 5 tokens"


def no_padding_token(directory: Path) -> str:
    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_text())
    del config["pad_token"]
    path.write_text(json.dumps(config))
    return 'its tokenizer has no padding token; name one as "pad_token"'


def ids_beyond_the_embedding(directory: Path) -> str:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokenizer.add_tokens(["xylophone"])
    tokenizer.save_pretrained(directory)
    return "token ids up to 162 (xylophone), and its embedding has only 162 rows"


def slow_tokenizer(directory: Path) -> str:
    no_tokenizer(directory)
    (directory / "tokenizer_config.json").write_text('{"tokenizer_class": "PhobertTokenizer"}')
    (directory / "vocab.txt").write_text("".join(f"word{i} {i}\n" for i in range(20)))
    (directory / "bpe.codes").write_text("#version\nr i 10\n")
    return "its tokenizer, PhobertTokenizer, has no fast version"


def tokenizer_of_nothing(directory: Path) -> str:
    (directory / "tokenizer.json").write_text("{}")
    return "its tokenizer cannot be read"


DAMAGES = [
    foreign_names,
    other_family,
    more_layers,
    fewer_layers,
    other_width,
    missing_tensor,
    not_a_number,
    infinite,
    heads_that_do_not_divide,
    config_of_text,
    config_of_a_list,
    labels_in_a_list,
    truncated,
    empty_weights,
    lfs_pointer,
    lfs_tokenizer,
    weights_that_are_a_folder,
    missing_shard,
    shard_elsewhere,
    adapter,
    gptq,
    integer_weights,
    only_graphs,
    no_tokenizer,
    empty_vocabulary,
    no_padding_token,
    ids_beyond_the_embedding,
    slow_tokenizer,
    tokenizer_of_nothing,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_teacher_that_cannot_be_read_completely_is_refused_before_training(damage, model_dir):
    said = damage(model_dir)
    line = refusal(teacher_path=str(model_dir), student_path="scratch:1x64")
    assert said in line
    assert line.startswith(f"--teacher_path is {model_dir}, ")


@pytest.mark.parametrize("damage", [foreign_names, fewer_layers, truncated, no_tokenizer])
def test_a_student_that_cannot_be_read_completely_is_refused_before_training(damage, model_dir):
    said = damage(model_dir)
    line = refusal(teacher_path="scratch:1x64", student_path=str(model_dir))
    assert said in line
    assert line.startswith(f"--student_path is {model_dir}, ")


def test_a_directory_that_the_user_may_not_read_is_refused(model_dir):
    model_dir.parent.chmod(0)
    is_root = os.geteuid() == 0
    try:
        if is_root:  # nothing is forbidden to it
            os.seteuid(65534)
        with pytest.raises(UserError, match="cannot be read: Permission denied"):
            check_spec(str(model_dir), "--teacher_path")
    finally:
        if is_root:
            os.seteuid(0)
        model_dir.parent.chmod(0o700)


def test_a_path_that_is_too_long_is_refused():
    with pytest.raises(UserError, match="cannot be read: File name too long"):
        check_spec("a" * 5000, "--teacher_path")


def test_an_intact_model_passes(intact):
    check_run(teacher_path=str(intact), student_path=str(intact))


@pytest.mark.skipif(find_spec("sentencepiece") is not None, reason="sentencepiece is installed")
def test_a_sentencepiece_tokenizer_names_the_package_it_needs(model_dir):
    no_tokenizer(model_dir)
    (model_dir / "spm.model").write_bytes(b"\n")
    line = refusal(teacher_path=str(model_dir), student_path="scratch:1x64")
    assert line.endswith(
        "SentencePiece model (spm.model), which needs a package: pip install sentencepiece"
    )


def test_a_tokenizer_of_special_tokens_and_marks_only_is_refused():
    with pytest.raises(UnusableModel, match="only 4 tokens"):
        check_tokenizer(
            PreTrainedTokenizerFast(
                tokenizer_object=family_tokenizer("bert").backend_tokenizer.from_str(
                    '{"version":"1.0","added_tokens":[],"model":{"type":"WordLevel",'
                    '"vocab":{"[PAD]":0,"[UNK]":1,"_":2,",":3},"unk_token":"[UNK]"}}'
                ),
                pad_token="[PAD]",
                unk_token="[UNK]",
            )
        )


# Wrappers


def logits_of(directory: Path) -> np.ndarray:
    model, tokenizer = load_pretrained(str(directory), "--teacher_path", TASK, MAX_LENGTH)
    with torch.inference_mode():
        return model.eval()(**tokenizer(TEXTS, padding=True, return_tensors="pt")).logits.numpy()


@pytest.mark.parametrize(
    "wrap, removed",
    [
        (lambda name: f"module.{name}", "module."),
        (lambda name: f"model.{name}", "model."),
        (lambda name: f"model.module.{name}", "model.module."),
        (lambda name: f"_orig_mod.{name}", "_orig_mod."),
        (lambda name: f"module._orig_mod.{name}", "_orig_mod. and module."),
        (lambda name: name.replace("bert.", "bert._orig_mod."), "_orig_mod."),
        (lambda name: name.replace("layer.1.", "layer.1._fsdp_wrapped_module."), "_fsdp_wrapped"),
        (lambda name: name.replace("bert.", "encoder."), "encoder."),
        (lambda name: name.replace("bert.", "0.auto_model."), "0.auto_model."),
    ],
)
def test_a_wrapper_prefix_is_removed_with_a_note(wrap, removed, intact, model_dir, caplog):
    rename_weights(model_dir, wrap)
    with caplog.at_level(logging.WARNING):
        assert np.array_equal(logits_of(model_dir), logits_of(intact))
    (note,) = [line for line in caplog.messages if line.startswith("note: ")]
    assert f"are read without {removed}" in note


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"module.{name}",
        lambda name: name.replace("bert.", "bert._orig_mod."),
        lambda name: name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ),
        lambda name: name.removeprefix("bert."),
    ],
    ids=["module", "compiled", "gamma and beta", "base model"],
)
def test_a_model_is_saved_under_the_names_of_its_family(rename, intact, model_dir, tmp_path):
    rename_weights(model_dir, rename)
    model, tokenizer = load_pretrained(str(model_dir), "--teacher_path", TASK, MAX_LENGTH)
    save_model(model, tokenizer, tmp_path / "saved")
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    expected = load_file(intact / "model.safetensors")
    assert saved.keys() == expected.keys()
    assert all(torch.equal(saved[name], expected[name]) for name in expected)


def test_weights_of_a_language_model_or_a_base_model_are_complete(intact, model_dir):
    def without_prefix(name: str) -> str:
        return "" if name.startswith("classifier") else name.removeprefix("bert.")

    rename_weights(model_dir, without_prefix)
    change_weight(model_dir, "cls.predictions.bias", torch.zeros(162))
    change_weight(model_dir, "embeddings.position_ids", torch.arange(80)[None])
    model, _ = load_pretrained(str(model_dir), "--teacher_path", TASK, MAX_LENGTH)
    saved = load_file(intact / "model.safetensors")
    loaded = model.state_dict()
    assert all(torch.equal(loaded[name], saved[name]) for name in saved if "bert." in name)


# The labels of a saved head

HATE = Task(("clean", "hate"), multi_label=False)


def finished_teacher(model_dir: Path, tmp_path: Path, task: Task = HATE) -> Path:
    """The stage `teacher` with `--teacher_epochs 0`, after the checks of the run."""
    options = Options(
        max_length=MAX_LENGTH,
        teacher_path=str(model_dir),
        teacher_epochs=0,
        student_path="scratch:1x64",
        device="cpu",
    )
    check_runs([options], task)
    out_dir = tmp_path / "teacher"
    out_dir.mkdir()
    return fine_tune_teacher(str(model_dir), splits_of(TEXTS), task, out_dir, options)


@pytest.mark.parametrize(
    "names, columns",
    [
        (["hate", "clean"], [1, 0]),  # in another order than the file's
        (["clean", "hate"], [0, 1]),
        (["LABEL_0", "LABEL_1"], [0, 1]),  # no names: by position
    ],
)
def test_a_finished_teacher_keeps_each_label_on_its_own_logit(
    names, columns, intact, model_dir, tmp_path
):
    change_config(model_dir, id2label=dict(enumerate(names)))
    teacher_dir = finished_teacher(model_dir, tmp_path)
    before = predict_logits(load_engine(intact, "torch", MAX_LENGTH), TEXTS)
    after = predict_logits(load_engine(teacher_dir, "torch", MAX_LENGTH), TEXTS)
    assert np.array_equal(after, before[:, columns])
    assert read_labels(teacher_dir)[0] == HATE.labels


def test_the_rows_of_a_head_follow_their_names_in_any_order(model_dir):
    """An order of three names that is not its own inverse."""
    change_config(model_dir, id2label={"0": "c", "1": "a", "2": "b"})
    change_weight(model_dir, "classifier.weight", torch.arange(96.0).reshape(3, 32))
    change_weight(model_dir, "classifier.bias", torch.tensor([3.0, 1.0, 2.0]))
    task = Task(("a", "b", "c"), multi_label=False)
    model, _ = load_pretrained(str(model_dir), "--teacher_path", task, MAX_LENGTH)
    assert model.classifier.bias.tolist() == [1.0, 2.0, 3.0]
    assert model.classifier.weight[:, 0].tolist() == [32.0, 64.0, 0.0]


def test_numbers_as_names_are_labels(model_dir, tmp_path):
    change_config(model_dir, id2label={"0": 1, "1": 0})
    weights = load_file(model_dir / "model.safetensors")
    teacher_dir = finished_teacher(model_dir, tmp_path, TASK)
    saved = load_file(teacher_dir / "model.safetensors")
    assert torch.equal(saved["classifier.weight"], weights["classifier.weight"].flip(0))
    assert torch.equal(saved["classifier.bias"], weights["classifier.bias"].flip(0))


@pytest.mark.parametrize(
    "names, said",
    [
        (["hate", "clean"], "predicts hate, clean: its rows are reordered to clean, hate"),
        (["LABEL_0", "LABEL_1"], "have no names (LABEL_0, LABEL_1): they are read as clean, hate"),
        (["no", "yes"], "predicts no, yes, not clean, hate: it gets a new classification head"),
    ],
)
def test_a_head_that_is_not_simply_kept_gives_a_note(names, said, model_dir, caplog):
    change_config(model_dir, id2label=dict(enumerate(names)))
    with caplog.at_level(logging.WARNING):
        load_pretrained(str(model_dir), "--teacher_path", HATE, MAX_LENGTH)
        load_pretrained(str(model_dir), "--teacher_path", HATE, MAX_LENGTH)
    (note,) = [line for line in caplog.messages if line.startswith("note: ")]
    assert said in note


def test_a_head_for_other_labels_is_initialized_again(model_dir):
    change_config(model_dir, id2label={"0": "no", "1": "yes"})
    change_weight(model_dir, "classifier.bias", torch.tensor([3.0, -3.0]))
    model, _ = load_pretrained(str(model_dir), "--teacher_path", HATE, MAX_LENGTH)
    saved = load_file(model_dir / "model.safetensors")
    assert torch.equal(model.classifier.bias, torch.zeros(2))
    assert not torch.equal(model.classifier.weight, saved["classifier.weight"])
    assert torch.equal(model.bert.pooler.dense.weight, saved["bert.pooler.dense.weight"])


def test_a_head_with_another_number_of_labels_is_initialized_again(model_dir):
    three = Task(("a", "b", "c"), multi_label=False)
    model, _ = load_pretrained(str(model_dir), "--teacher_path", three, MAX_LENGTH)
    assert model.classifier.weight.shape == (3, 32)


def headless(directory: Path) -> str:
    rename_weights(directory, lambda name: name if name.startswith("bert.") else "")
    return "it has no fine-tuned head: classifier.bias is not in its weights"


def gap_in_the_labels(directory: Path) -> str:
    change_config(directory, id2label={"0": "clean", "2": "hate"})
    return "must number the labels 0, 1, 2, ... without gaps"


def other_labels(directory: Path) -> str:
    change_config(directory, id2label={"0": "no", "1": "yes"})
    return "it predicts no, yes and the file has clean, hate"


def more_labels(directory: Path) -> str:
    change_config(directory, id2label={"0": "clean", "1": "hate", "2": "spam"})
    return "it predicts clean, hate, spam and the file has clean, hate"


def several_labels_per_text(directory: Path) -> str:
    change_config(
        directory,
        id2label={"0": "clean", "1": "hate"},
        problem_type="multi_label_classification",
    )
    return "it predicts several labels per text"


@pytest.mark.parametrize(
    "damage", [headless, gap_in_the_labels, other_labels, more_labels, several_labels_per_text]
)
def test_a_teacher_that_is_not_finished_is_refused_with_0_epochs(damage, model_dir, tmp_path):
    if damage is headless:
        change_config(model_dir, id2label={"0": "clean", "1": "hate"})
    said = damage(model_dir)
    with pytest.raises(UserError) as raised:
        finished_teacher(model_dir, tmp_path)
    (line,) = raised.value.lines
    assert line.startswith("--teacher_epochs is 0, but ") and said in line


# Served folders


def other_positions(directory: Path) -> str:
    change_config(directory, position_embedding_type="relative_key")
    return "the position_embedding_type relative_key"


@pytest.mark.parametrize(
    "damage", [foreign_names, fewer_layers, missing_tensor, not_a_number, other_positions]
)
def test_a_model_with_random_weights_is_never_served(damage, model_dir):
    said = damage(model_dir)
    with pytest.raises(UserError, match="--engine is torch, but it failed to load") as raised:
        inference.load(model_dir, "torch", threads=1)
    assert said in str(raised.value)


@pytest.mark.parametrize("damage", [foreign_names, not_a_number])
def test_a_model_with_random_weights_is_never_timed(damage, model_dir, capsys):
    said = damage(model_dir)
    assert benchmark.main([str(model_dir), "--max_length", "64"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"benchmark.py: error: DIR is {model_dir}, but ") and said in line


@pytest.mark.parametrize("damage", [no_padding_token, ids_beyond_the_embedding])
def test_a_model_with_another_tokenizer_is_never_served(damage, model_dir):
    damage(model_dir)
    with pytest.raises(UnusableModel, match="its tokenizer has"):
        read_tokenizer(model_dir, MAX_LENGTH)
    with pytest.raises(UserError, match="--engine is torch, but .* its tokenizer has"):
        inference.load(model_dir, "torch", threads=1)


@pytest.mark.parametrize("damage", [more_layers, not_a_number])
def test_a_stage_reads_every_weight_of_the_stage_before(damage, model_dir):
    said = damage(model_dir)
    with pytest.raises(UnusableModel) as raised:
        load_saved_model(model_dir)
    assert said in str(raised.value)


def test_a_model_without_a_head_is_never_served(model_dir):
    rename_weights(model_dir, lambda name: name if name.startswith("bert.") else "")
    with pytest.raises(UserError, match="2 of the 41 tensors .* classifier.bias"):
        inference.load(model_dir, "torch", threads=1)


def test_a_served_model_is_read_through_a_wrapper(intact, model_dir):
    rename_weights(model_dir, lambda name: f"module.{name}")
    before = predict_logits(load_engine(intact, "torch", MAX_LENGTH), TEXTS)
    assert np.array_equal(
        predict_logits(load_engine(model_dir, "torch", MAX_LENGTH), TEXTS), before
    )


@pytest.mark.parametrize(
    "names", [{"0": "a", "2": "b"}, {"a": "x", "b": "y"}, ["a", "b"], {"0": "a"}]
)
def test_a_served_model_must_name_each_label(names, model_dir):
    change_config(model_dir, id2label=names)
    with pytest.raises(UserError, match="must name two labels or more in id2label"):
        inference.load(model_dir, "torch", threads=1)


@pytest.mark.parametrize("prefix", ["0.", "module."])  # sorted before and after the first
def test_a_second_copy_of_the_weights_does_not_replace_the_first(prefix, intact, model_dir):
    path = model_dir / "model.safetensors"
    tensors = load_file(path)
    copies = {f"{prefix}{name}": tensor + 1 for name, tensor in tensors.items()}
    save_file(tensors | copies, path, {"format": "pt"})
    model, _ = load_weights(str(model_dir), allow_new_head=False)
    for name, tensor in load_file(intact / "model.safetensors").items():
        assert torch.equal(model.state_dict()[name], tensor)


def test_two_wrapped_copies_of_the_weights_are_refused(model_dir):
    path = model_dir / "model.safetensors"
    tensors = load_file(path)
    copies = {f"module.{name}": tensor for name, tensor in tensors.items()}
    copies |= {f"model.{name}": tensor + 1 for name, tensor in tensors.items()}
    save_file(copies, path, {"format": "pt"})
    with pytest.raises(UnusableModel, match="several copies of the model, named model. and module"):
        load_weights(str(model_dir), allow_new_head=False)


def test_a_leftover_copy_of_an_embedding_is_ignored(model_dir):
    rows = load_file(model_dir / "model.safetensors")["bert.embeddings.word_embeddings.weight"]
    change_weight(model_dir, "bert.embeddings.word_embeddings._weight", rows + 1)
    model, _ = load_weights(str(model_dir), allow_new_head=False)
    assert torch.equal(model.get_input_embeddings().weight, rows)


def test_the_counter_of_an_averaged_model_is_no_quantized_weight(model_dir):
    rename_weights(model_dir, lambda name: f"module.{name}")
    change_weight(model_dir, "n_averaged", torch.tensor(3))
    check_run(teacher_path=str(model_dir), student_path="teacher:1")
