"""The encoder families that pass every stage, and why others do not. No torch.

A family is the `model_type` of a config.json.
"""

from __future__ import annotations

from typing import Any

from encoders.model_files import UnusableModel

AFTER_PADDING = None  # the first token has the position `pad_token_id + 1`

SUPPORTED: dict[str, int | None] = {  # family -> position of the first token
    "bert": 0,
    "electra": 0,
    "distilbert": 0,
    "roberta": AFTER_PADDING,
    "xlm-roberta": AFTER_PADDING,
    "camembert": AFTER_PADDING,
    "xlm-roberta-xl": AFTER_PADDING,
    "data2vec-text": AFTER_PADDING,
    "albert": 0,
    "mpnet": 2,  # whatever the padding token is
    "deberta": 0,
    "deberta-v2": 0,
    "ernie": 0,
}

REFUSED = {  # family -> why a stage fails or answers wrongly
    "convbert": "its convolutions read padding, so the answer depends on the batch",
    "fnet": "it has no attention mask, so the answer depends on the batch",
    "longformer": "it pads to its attention window, and its exported graphs fail on other lengths",
    "funnel": "it shortens its input, and its exported graphs fail on other lengths",
    "nystromformer": "it reads only inputs of one length",
    "canine": "it reads characters and has no vocabulary",
    "squeezebert": "its layers are convolutions",
    "modernbert": "its layers and feed-forward blocks are not those of BERT",
    "mobilebert": "--ffn_width does not support its several feed-forward blocks per layer",
    "xmod": "its language adapters are part of the feed-forward blocks",
    "ibert": "its linear layers are of a type of its own",
    "roformer": "quantization-aware training does not support its position embeddings",
    "xlnet": "its layers are not those of BERT, and it sets no limit of the input length",
}


def check_family(config: dict[str, Any]) -> None:
    """Refuse a config.json of another family, or with other positions than absolute ones."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise UnusableModel("its config.json names no model_type")
    if model_type not in SUPPORTED:
        reason = REFUSED.get(model_type, "this family was not tested")
        raise UnusableModel(
            f"its model_type {model_type} is not supported ({reason}); supported are "
            f"{', '.join(SUPPORTED)}"
        )
    check_positions(config)


def check_positions(config: dict[str, Any]) -> None:
    """Refuse a config.json with positions that transformers ignores."""
    positions = config.get("position_embedding_type", "absolute")
    if str(positions).startswith("relative_key"):
        raise UnusableModel(
            f"its config.json has the position_embedding_type {positions}, which transformers no "
            "longer computes; use an encoder with absolute positions"
        )
