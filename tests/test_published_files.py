"""What a run publishes can be read by others as the umask says, and loads in other versions."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoTokenizer

from encoders.scratch import scratch_model
from encoders.start import save_model
from runtime.artifacts import atomic_directory
from runtime.files import link_or_copy
from task import Task

TEXTS = [f"good people see the river {i}" for i in range(20)]
FORBIDDEN = {"is_local", "local_files_only", "auto_map"}


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def modes(directory: Path) -> set[int]:
    return {path.stat().st_mode & 0o777 for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("mask, mode", [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_published_files_follow_the_umask(tmp_path, mask, mode):
    """safetensors and tempfile write files that only their owner can read."""
    with umask(mask):
        with atomic_directory(tmp_path / "stage", "1") as partial:
            save_file({"weight": torch.zeros(2)}, partial / "model.safetensors")
            (partial / "onnx").mkdir()
            (partial / "onnx" / "model.onnx").touch(0o600)
            (partial / "config.json").write_text("{}")
        with atomic_directory(tmp_path / "artifact", "1") as partial:
            link_or_copy(tmp_path / "stage" / "model.safetensors", partial / "model.safetensors")
        assert modes(tmp_path) == {mode}


def test_a_saved_tokenizer_does_not_record_how_it_was_loaded(tmp_path):
    model, tokenizer = scratch_model("scratch:1x64", Task(("0", "1"), False), TEXTS, 64)
    names = ("fresh", "loaded")
    save_model(model, tokenizer, tmp_path / "fresh")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "fresh", local_files_only=True)
    save_model(model, loaded, tmp_path / "loaded")
    contents = {(tmp_path / name / "tokenizer_config.json").read_bytes() for name in names}
    assert len(contents) == 1
    config = json.loads(contents.pop())
    assert not FORBIDDEN & config.keys()
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert loaded(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]
    assert loaded.model_input_names == tokenizer.model_input_names
