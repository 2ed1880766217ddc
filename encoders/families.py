"""How encoder families differ: names of layers, Linears and config entries.

Other modules call these functions and do not test `config.model_type` themselves. Which families
are supported is in encoders/family_table.py.
"""

from __future__ import annotations

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from encoders.family_table import AFTER_PADDING, SUPPORTED
from runtime.errors import UserError

# The last part of the name of an encoder's layer list; the second name is ALBERT's.
LAYER_LIST_NAMES = ("layer", "albert_layer_groups")

# The names of the Linears for queries, keys and values; the second row is DistilBERT's.
QUERY_KEY_VALUE = (("query", "key", "value"), ("q_lin", "k_lin", "v_lin"))


def encoder_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Full name and list of the encoder's layers, such as `bert.encoder.layer`.

    UserError if the model has no such list.
    """
    for name, module in model.named_modules():
        last_part = name.split(".")[-1]
        if isinstance(module, nn.ModuleList) and last_part in LAYER_LIST_NAMES:
            return name, module
    raise UserError(
        f"{model.config.model_type} is not a supported encoder: it has no list of layers"
    )


def linears_in(module: nn.Module) -> dict[str, nn.Linear]:
    """Name relative to `module` -> Linear, for every Linear in it, in the order of definition."""
    return {
        name: submodule
        for name, submodule in module.named_modules()
        if isinstance(submodule, nn.Linear)
    }


def encoder_linears(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """Full name -> Linear, for every Linear of the encoder's layers; no pooler, no head."""
    prefix, layers = encoder_layers(model)
    return {f"{prefix}.{name}": linear for name, linear in linears_in(layers).items()}


def query_key_value(layer: nn.Module) -> tuple[nn.Linear, ...]:
    """The query, key and value Linears of a layer; () if the family uses other names for them."""
    linears = {name.split(".")[-1]: linear for name, linear in linears_in(layer).items()}
    for names in QUERY_KEY_VALUE:
        if linears.keys() >= set(names):
            return tuple(linears[name] for name in names)
    return ()


def is_attention(linear_name: str) -> bool:
    """Whether an encoder Linear belongs to self-attention (else to the feed-forward block)."""
    return ".attention." in linear_name


def ffn_width(config: PretrainedConfig) -> int:
    """Neurons of a layer's feed-forward block."""
    return getattr(config, ffn_width_key(config))


def set_ffn_width_(config: PretrainedConfig, width: int) -> None:
    """Record in the config that feed-forward blocks have `width` neurons."""
    setattr(config, ffn_width_key(config), width)


def ffn_width_key(config: PretrainedConfig) -> str:
    """The config entry for the feed-forward width: `hidden_dim` for DistilBERT."""
    if hasattr(config, "hidden_dim"):
        return "hidden_dim"
    return "intermediate_size"


def keep_layers_(model: PreTrainedModel, layer_ids: list[int]) -> None:
    """Drop every encoder layer except `layer_ids`, in place, and update the config.

    ALBERT runs one shared layer several times: its weights are kept, and only the number of runs
    changes.
    """
    name, layers = encoder_layers(model)
    is_shared = len(layers) != model.config.num_hidden_layers
    if not is_shared:
        parent_name, _, list_name = name.rpartition(".")
        kept_layers = nn.ModuleList(layers[layer_id] for layer_id in layer_ids)
        setattr(model.get_submodule(parent_name), list_name, kept_layers)
    model.config.num_hidden_layers = len(layer_ids)


def position_limit(config: PretrainedConfig) -> int:
    """The longest input in tokens, as limited by the position embeddings."""
    return config.max_position_embeddings - positions_before_text(config)


def positions_before_text(config: PretrainedConfig) -> int:
    """Number of position embeddings before that of the first token.

    RoBERTa and its relatives number positions from `pad_token_id + 1`.
    """
    position = SUPPORTED[config.model_type]
    return config.pad_token_id + 1 if position is AFTER_PADDING else position
