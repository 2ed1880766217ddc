"""TODO."""

from __future__ import annotations

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from compression_config import UserError

QUERY_KEY_VALUE = (("query", "key", "value"), ("q_lin", "k_lin", "v_lin"))


def encoder_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Name and list of the encoder's layers: `encoder.layer` (BERT-like) or `transformer.layer` (DistilBERT)."""
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and name.split(".")[-1] in (
            "layer",
            "albert_layer_groups",
        ):
            return name, module
    raise UserError(
        f"{model.config.model_type} is not a supported encoder: no list of layers found in it"
    )


def encoder_linears(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """Full name -> Linear, for every Linear of the encoder's layers; no embedding, pooler or head."""
    prefix, layers = encoder_layers(model)
    return {
        f"{prefix}.{name}": module
        for name, module in layers.named_modules()
        if isinstance(module, nn.Linear)
    }


def query_key_value(layer: nn.Module) -> tuple[nn.Linear, ...]:
    """The Linears of a layer that make queries, keys and values; none where a family names them otherwise."""
    linears = {
        name.rpartition(".")[2]: module
        for name, module in layer.named_modules()
        if isinstance(module, nn.Linear)
    }
    for names in QUERY_KEY_VALUE:
        if set(names) <= set(linears):
            return tuple(linears[name] for name in names)
    return ()


def is_attention(linear_name: str) -> bool:
    """Whether an encoder Linear belongs to self-attention (else to the feed-forward block)."""
    return ".attention." in linear_name


def ffn_width(config: PretrainedConfig) -> int:
    """Neurons of a layer's feed-forward block."""
    return getattr(config, ffn_width_key(config))


def set_ffn_width_(config: PretrainedConfig, width: int) -> None:
    """Say that blocks have `width` neurons."""
    setattr(config, ffn_width_key(config), width)


def ffn_width_key(config: PretrainedConfig) -> str:
    """What the family calls the width of its feed-forward block: DistilBERT `hidden_dim`."""
    return "hidden_dim" if hasattr(config, "hidden_dim") else "intermediate_size"


def keep_layers_(model: PreTrainedModel, layer_ids: list[int]) -> None:
    """Drop every encoder layer but `layer_ids`, in place; the config follows. ALBERT's one shared layer stays."""
    name, layers = encoder_layers(model)
    if len(layers) == model.config.num_hidden_layers:
        parent = model.get_submodule(name.rpartition(".")[0])
        setattr(parent, name.rpartition(".")[2], nn.ModuleList(layers[i] for i in layer_ids))
    model.config.num_hidden_layers = len(layer_ids)


def position_limit(config: PretrainedConfig) -> int:
    """The most tokens the model's position embeddings hold; RoBERTa-like ones lose the first few to padding."""
    return config.max_position_embeddings - positions_before_text(config)


def positions_before_text(config: PretrainedConfig) -> int:
    """Position embeddings that no token of a text has: RoBERTa's relatives count from the padding token's id."""
    return (
        config.pad_token_id + 1
        if config.model_type in ("roberta", "xlm-roberta", "camembert")
        else 0
    )
