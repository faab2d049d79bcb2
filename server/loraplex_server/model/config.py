"""A decoder's shape, read from a Hugging Face config.json."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraplex_server.errors import BaseModelInvalidError, UnsupportedArchitectureError

log = logging.getLogger(__name__)

SUPPORTED_ARCHITECTURES: dict[str, str] = {
    "LlamaForCausalLM": "Llama 2/3, SmolLM2",
    "MistralForCausalLM": "Mistral",
    "Qwen2ForCausalLM": "Qwen2, Qwen2.5",
    "Qwen3ForCausalLM": "Qwen3 (dense)",
}
_REQUIRED_SIZES = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "vocab_size",
    "max_position_embeddings",
)
_QWEN_FULL_LAYERS = 28  # Qwen2's and Qwen3's default of max_window_layers
SUPPORTED_ROPE_TYPES = ("default", "linear", "llama3", "yarn")


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary embedding: base frequency, and how long contexts are reached."""

    rope_type: str  # of SUPPORTED_ROPE_TYPES
    theta: float
    scaling: dict[str, Any]  # the remaining parameters of the type, as config.json names them


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    """Everything the decoder needs to know besides the weights."""

    architecture: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: bool
    tie_embeddings: bool
    rope: RopeConfig
    sliding_window_of_layer: tuple[int | None, ...]
    max_position_embeddings: int
    eos_token_ids: tuple[int, ...]  # each below vocab_size

    @classmethod
    def from_folder(cls, folder: Path) -> DecoderConfig:
        """Read `config.json`, and the end-of-sequence ids of `generation_config.json` if there is one."""
        config = _read_json(folder / "config.json")
        generation = folder / "generation_config.json"
        if generation.is_file():
            eos = _read_json(generation).get("eos_token_id")
            if eos is not None:
                config = {**config, "eos_token_id": eos}
        return cls.from_hf(config)

    @classmethod
    def from_hf(cls, config: dict[str, Any]) -> DecoderConfig:
        """Interpret the contents of a config.json, of transformers 5 or older.

        Raises UnsupportedArchitectureError for what the decoder does not cover, in one line.
        """
        architecture = _architecture(config)
        _require_sizes(config)
        _refuse_unsupported_features(config)
        num_heads = config["num_attention_heads"]
        qwen2, qwen3 = architecture.startswith("Qwen2"), architecture.startswith("Qwen3")
        attention_bias = bool(config.get("attention_bias", False))
        return cls(
            architecture=architecture,
            num_layers=config["num_hidden_layers"],
            hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate_size"],
            num_heads=num_heads,
            num_kv_heads=config.get("num_key_value_heads") or num_heads,
            head_dim=config.get("head_dim") or config["hidden_size"] // num_heads,
            vocab_size=config["vocab_size"],
            rms_norm_eps=config.get("rms_norm_eps", 1e-6),
            qkv_bias=qwen2 or attention_bias,
            o_bias=attention_bias and not qwen2,
            mlp_bias=bool(config.get("mlp_bias", False)),
            qk_norm=qwen3,
            tie_embeddings=bool(config.get("tie_word_embeddings", False)),
            rope=_rope(config),
            sliding_window_of_layer=_sliding_windows(architecture, config),
            max_position_embeddings=config["max_position_embeddings"],
            eos_token_ids=_end_ids(config),
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BaseModelInvalidError(
            f"no {path.name} in the base folder; give a Hugging Face model folder"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise BaseModelInvalidError(f"{path.name} of the base cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise BaseModelInvalidError(f"{path.name} of the base is not a JSON object")
    return content


def _unsupported(what: str) -> UnsupportedArchitectureError:
    supported = "; ".join(f"{name} ({families})" for name, families in SUPPORTED_ARCHITECTURES.items())
    return UnsupportedArchitectureError(f"{what} is not supported; supported: {supported}")


def _architecture(config: dict[str, Any]) -> str:
    names = config.get("architectures") or []
    name = names[0] if names else f"model type {config.get('model_type', 'unknown')}"
    if name not in SUPPORTED_ARCHITECTURES:
        raise _unsupported(f"architecture {name}")
    return str(name)


def _require_sizes(config: dict[str, Any]) -> None:
    """Raises BaseModelInvalidError unless every size that has no default is a positive integer."""
    wrong = [name for name in _REQUIRED_SIZES if not isinstance(config.get(name), int) or config[name] < 1]
    if wrong:
        raise BaseModelInvalidError(f"config.json of the base has no valid {', '.join(wrong)}")


def _refuse_unsupported_features(config: dict[str, Any]) -> None:
    """What would silently give wrong logits is refused by name."""
    if config.get("hidden_act", "silu") not in ("silu", "swish"):
        raise _unsupported(f"hidden_act {config['hidden_act']}")
    if config.get("partial_rotary_factor", 1.0) not in (None, 1.0):
        raise _unsupported("partial_rotary_factor")
    if config.get("quantization_config"):
        raise _unsupported("a checkpoint that is already quantized (quantization_config)")
    if config.get("auto_map"):
        raise _unsupported("a model with its own code (auto_map)")


def _end_ids(config: dict[str, Any]) -> tuple[int, ...]:
    """Ids of end-of-sequence tokens, without those that no token has: published models list some, and a logit of such
    an id cannot be banned."""
    named = config.get("eos_token_id")
    ids = named if isinstance(named, list) else [] if named is None else [named]
    known = tuple(
        token_id for token_id in ids if isinstance(token_id, int) and 0 <= token_id < config["vocab_size"]
    )
    if len(known) < len(ids):
        log.warning(
            "eos_token_id of the base is %s, and its vocabulary has ids below %d: %s; correct it in "
            "generation_config.json or config.json if answers do not end",
            named,
            config["vocab_size"],
            f"only {list(known)} can end an answer" if known else "none of them can end an answer",
        )
    return known


def _rope(config: dict[str, Any]) -> RopeConfig:
    """Both `rope_parameters` (transformers 5) and `rope_theta` with `rope_scaling` (older)."""
    parameters = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    rope_type = parameters.pop("rope_type", None) or parameters.pop("type", None) or "default"
    parameters.pop("type", None)
    if rope_type not in SUPPORTED_ROPE_TYPES:
        raise _unsupported(f"rope type {rope_type}")
    if parameters.pop("partial_rotary_factor", 1.0) not in (None, 1.0):
        raise _unsupported("partial_rotary_factor")
    theta = parameters.pop("rope_theta", None) or config.get("rope_theta") or 10000.0
    if rope_type in ("llama3", "yarn"):
        # Older files keep the trained length beside the scaling, or only as max_position_embeddings.
        parameters.setdefault(
            "original_max_position_embeddings",
            config.get("original_max_position_embeddings") or config["max_position_embeddings"],
        )
    return RopeConfig(rope_type, float(theta), parameters)


def _sliding_windows(architecture: str, config: dict[str, Any]) -> tuple[int | None, ...]:
    """Window of each layer, None for full attention."""
    num_layers: int = config["num_hidden_layers"]
    window: int | None = config.get("sliding_window")
    if architecture == "MistralForCausalLM":
        return (window,) * num_layers
    if not architecture.startswith("Qwen") or not config.get("use_sliding_window") or window is None:
        return (None,) * num_layers
    layer_types = config.get("layer_types")
    if layer_types is not None:
        return tuple(window if kind == "sliding_attention" else None for kind in layer_types)
    first_windowed = config.get("max_window_layers", _QWEN_FULL_LAYERS)
    return tuple(window if layer >= first_windowed else None for layer in range(num_layers))
