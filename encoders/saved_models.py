"""Model and tokenizer of a directory that a stage wrote, here or elsewhere.

The directory may be a stranger's: no code that comes with it is run, and no pickle is opened.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from encoders.loading import load_weights


def load_saved_model(directory: Path | str, **arguments: Any) -> PreTrainedModel:
    """The model of a directory; `arguments` are those of `from_pretrained`.

    UnusableModel if a weight is missing or has no place in the model.
    """
    model, _ = load_weights(str(directory), allow_new_head=False, **arguments)
    return model


def load_saved_tokenizer(directory: Path | str) -> PreTrainedTokenizerBase:
    """The tokenizer of a directory."""
    return AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
