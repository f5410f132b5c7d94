"""tiny_config(): a published architecture at a width of 64, with every switch that decides how it computes.

What a rehearsal proves it proves of the code that these switches choose: grouped or multi-query heads, a head size of
its own, tied embeddings, soft caps, the kind and base of its rotary positions, sliding windows, norms, activation.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from distill.errors import RecipeError
from distill.family.known import FAMILIES, family_of
from distill.family.reading import refuse_unknown_architecture

WIDTH, NUM_LAYERS, NUM_HEADS = 64, 2, 4
"""The smallest that nf4 can block on a CPU (64) and that still tells full, grouped and multi-query heads apart."""
OWN_HEAD_SIZE = 32
"""Of an architecture that chose its head size freely, and does not divide the width among its heads."""
INITIALIZER_RANGE = 0.15
"""Logits then differ by about one nat: from 0.02, every distribution is flat, and a wrong export would look right."""

_WIDTHS = ("hidden_size", "n_embd", "d_model", "dim", "model_dim")
_DEPTHS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads")
_KEY_VALUE_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "multi_query_group_num")
_HEAD_SIZES = ("head_dim", "kv_channels", "attention_head_dim", "global_head_dim")
_MLP_WIDTHS = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "moe_intermediate_size")
_MLP_WIDTHS += ("shared_expert_intermediate_size", "d_ff", "mlp_hidden_size")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
_PER_LAYER = ("layer_types", "attention_layers", "mlp_layer_types", "no_rope_layers", "layers_block_type")
_INITIAL = ("initializer_range", "init_std")
_SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id")
_OF_WEIGHTS = ("dtype", "torch_dtype", "quantization_config", "_name_or_path", "transformers_version")
"""Facts of the weights that are left at home."""


def tiny_config(
    config: Mapping[str, Any], vocab_size: int, num_layers: int = NUM_LAYERS, asked_by: str = "model"
) -> dict:
    """config.json of a tiny checkpoint of the same architecture, `model_type` included, with `vocab_size` tokens.

    Positions, windows, scales and switches stay as they are. Special token ids are None: the tokenizer that goes with
    it has its own. An architecture that is not among our families is made small by the names that transformers uses.

    Args:
        config: a whole config.json, or the facts of `distill.family.known.config_of`.
        num_layers: at least so many; more where it takes more to have each kind of layer once.
        asked_by: the recipe's key, for messages.

    Raises:
        RecipeError: transformers has no such architecture, or its sizes go by names that we do not know.
    """
    full = full_config(config, asked_by)
    family = family_of(config)
    tiny = {name: value for name, value in config.items() if name not in _OF_WEIGHTS}
    tiny |= family.tiny if family else {}
    layers = _layers(full, num_layers)
    tiny |= _sizes(full) | layers
    tiny |= {name: None for name in _SPECIAL_IDS if name in full}
    tiny |= {name: INITIALIZER_RANGE for name in _INITIAL if name in full}
    tiny["rope_parameters"] = _rope(full, tiny)
    if not tiny["rope_parameters"]:
        del tiny["rope_parameters"]
    tiny |= {"vocab_size": vocab_size, "dtype": "float32", "model_type": config["model_type"]}
    if _first(full, _WIDTHS) is None or _first(full, _DEPTHS) is None:
        raise RecipeError(
            f"The architecture {config['model_type']!r} names its width or depth in a way that a rehearsal does not "
            f"know; ours are {', '.join(family.name for family in FAMILIES)}. Rehearse with one of these."
        )
    return tiny


def full_config(config: Mapping[str, Any], asked_by: str = "model") -> dict[str, Any]:
    """Every key that the architecture has, with transformers' defaults where `config` is silent.

    Raises:
        RecipeError: transformers has no language model of this `model_type`; says which families are known.
    """
    from transformers import AutoConfig

    refuse_unknown_architecture(config, asked_by)
    values = {name: value for name, value in config.items() if name != "model_type"}
    built = AutoConfig.for_model(config["model_type"], **values)
    # under the names that the architecture gives its own keys (n_embd), not under transformers' common ones
    return {**built.to_dict(), **{name: getattr(built, name) for name in _PER_LAYER if hasattr(built, name)}}


def key_value_heads(full: Mapping[str, Any]) -> int | None:
    """How many heads keys and values have; None where the architecture does not say, which means as many as queries."""
    if full.get("multi_query"):
        return 1
    return _first(full, _KEY_VALUE_HEADS)


def _sizes(full: Mapping[str, Any]) -> dict[str, Any]:
    """Widths, heads and experts under the architecture's own names, in its own proportions."""
    width, heads = _first(full, _WIDTHS), _first(full, _HEADS)
    projected = full.get("word_embed_proj_dim", width) != width
    # OPT-350M's embeddings are narrower than its layers: both must stay multiples of 64
    wide = 2 * WIDTH if projected else WIDTH
    sizes: dict[str, Any] = {name: wide for name in _WIDTHS if full.get(name)}
    sizes |= {name: NUM_HEADS for name in _HEADS if full.get(name)}
    if "word_embed_proj_dim" in full:
        sizes["word_embed_proj_dim"] = WIDTH if projected else wide
    key_value, own = key_value_heads(full), _first(full, _HEAD_SIZES)
    if key_value and heads:
        few = NUM_HEADS if key_value == heads else 1 if key_value == 1 else NUM_HEADS // 2
        sizes |= {name: few for name in _KEY_VALUE_HEADS if full.get(name)}
    if own and width and heads:
        size = wide // NUM_HEADS if own * heads == width else OWN_HEAD_SIZE
        sizes |= {name: size for name in _HEAD_SIZES if full.get(name)}
    for name in _MLP_WIDTHS:
        if full.get(name) and width:
            sizes[name] = WIDTH * min(4, max(1, round(full[name] / width))) * (wide // WIDTH)
    sizes |= {name: min(4, full[name]) for name in _EXPERTS if full.get(name)}
    if full.get("num_experts_per_tok"):
        sizes["num_experts_per_tok"] = min(2, full["num_experts_per_tok"])
    return sizes


def _layers(full: Mapping[str, Any], num_layers: int) -> dict[str, Any]:
    """The depth, and lists with an entry for each layer cut so that every kind of layer still occurs."""
    depth = _first(full, _DEPTHS) or 0
    lists = {name: full[name] for name in _PER_LAYER if _is_list(full.get(name), depth)}
    first_of_kind = sorted({list(kinds).index(kind) for kinds in lists.values() for kind in kinds})
    more = [number for number in range(depth) if number not in first_of_kind]
    kept = sorted([*first_of_kind, *more[: max(0, num_layers - len(first_of_kind))]])
    cut: dict[str, Any] = {name: max(len(kept), num_layers) for name in _DEPTHS if full.get(name)}
    cut |= {name: [kinds[number] for number in kept] for name, kinds in lists.items() if name != "attention_layers"}
    if "attention_layers" in lists:
        # GPT-Neo derives it from pairs of (kinds, how often)
        cut["attention_types"] = [[[lists["attention_layers"][number] for number in kept], 1]]
    return cut


def _rope(full: Mapping[str, Any], tiny: Mapping[str, Any]) -> dict[str, Any] | None:
    """Rotary positions as they are; lists with a factor for each pair of a head are cut to the smaller head."""
    rope = full.get("rope_parameters")
    if not rope:
        return None
    size = _first(tiny, _HEAD_SIZES) or (_first(tiny, _WIDTHS) or WIDTH) // NUM_HEADS

    def cut(value: Any, name: str = "") -> Any:
        if isinstance(value, Mapping):
            return {key: cut(inner, key) for key, inner in value.items()}
        return value[: size // 2] if name in {"long_factor", "short_factor"} else value

    return cut(rope)


def _first(values: Mapping[str, Any], names: Sequence[str]) -> int | None:
    return next((values[name] for name in names if isinstance(values.get(name), int)), None)


def _is_list(value: Any, length: int) -> bool:
    return isinstance(value, list | tuple) and len(value) == length and length > 0
