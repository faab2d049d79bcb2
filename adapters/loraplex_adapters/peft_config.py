"""`adapter_config.json` → LoraSettings: every field is honoured exactly, harmless, or refused by name."""

from __future__ import annotations

from typing import Any

from loraplex_adapters.errors import (
    AdapterInvalidError,
    UnsupportedFormatError,
    UnsupportedPeftFeatureError,
)
from loraplex_adapters.lora_settings import ALL_LINEAR, LoraSettings, as_layers_prefix, as_suffix
from loraplex_adapters.module_patterns import MAX_COMPLEX_PATTERNS, compile_pattern, is_complex
from loraplex_adapters.strict_json import parse_object

CONFIG_FILE = "adapter_config.json"
MAX_CONFIG_BYTES = 256 * 1024
MAX_CONFIG_RANK = 4096
MAX_ABS_ALPHA = 1e6
_MAX_LIST = 1024  # names, patterns or layers in one field

_HONOURED = frozenset(
    [
        "r",
        "lora_alpha",
        "use_rslora",
        "rank_pattern",
        "alpha_pattern",
        "target_modules",
        "exclude_modules",
        "layers_to_transform",
        "layers_pattern",
        "peft_type",
        "task_type",
        "bias",
        "init_lora_weights",
    ]
)
# Fields without effect on a forward pass of the served model.
_HARMLESS = frozenset(
    [
        "base_model_name_or_path",
        "revision",
        "peft_version",
        "auto_mapping",
        "inference_mode",
        "lora_dropout",
        "megatron_core",
        "qalora_group_size",
        "runtime_config",
        "eva_config",
    ]
)
# Fields that change the mathematics in a way that is not served, and what to call them.
# Unset values are fine.
_REFUSED = {
    "use_dora": "DoRA",
    "modules_to_save": "fully trained modules",
    "lora_bias": "biases on LoRA",
    "alora_invocation_tokens": "activated LoRA (aLoRA)",
    "trainable_token_indices": "trained token embeddings",
    "layer_replication": "replicated layers",
    "megatron_config": "Megatron parallel layers",
    "target_parameters": "LoRA on bare parameters",
    "fan_in_fan_out": "transposed weights",
    "loftq_config": "LoftQ, which changes the base weights",
    "corda_config": "CorDA, which changes the base weights",
    "lora_ga_config": "LoRA-GA, which changes the base weights",
    "use_qalora": "QA-LoRA",
    "use_bdlora": "block-diagonal LoRA",
    "velora_config": "VeLoRA",
    "monteclora_config": "Monte Carlo LoRA",
    "arrow_config": "Arrow routing",
    "kasa_config": "KaSA",
    "ensure_weight_tying": "tied trained weights",
    "auto_map": "code shipped with the adapter",
}
# Initializations that leave the base weights as they are. PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA subtract
# from them, so their tensors are only right on that changed base.
_PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal")


def parse_peft_config(raw: bytes) -> LoraSettings:
    """Read the bytes of `adapter_config.json`.

    Raises AdapterInvalidError for anything malformed or out of range, with the field where one is at fault;
    UnsupportedPeftFeatureError for features that are not served, all listed at once; UnsupportedFormatError where code
    to run is among them.
    """
    if len(raw) > MAX_CONFIG_BYTES:
        raise AdapterInvalidError(f"{CONFIG_FILE} has more than {MAX_CONFIG_BYTES} bytes")
    config = parse_object(raw, CONFIG_FILE)
    unsupported = _unsupported_features(config)
    if unsupported:
        kind = UnsupportedFormatError if config.get("auto_map") else UnsupportedPeftFeatureError
        raise kind(f"{CONFIG_FILE} uses what is not supported: " + "; ".join(unsupported))
    return LoraSettings(
        rank=_rank(config.get("r"), "r"),
        alpha=_alpha(config.get("lora_alpha"), "lora_alpha"),
        use_rslora=_flag(config.get("use_rslora"), "use_rslora"),
        rank_pattern=tuple(
            (key, _rank(value, f"rank_pattern[{key[:80]!r}]"))
            for key, value in _pattern(config, "rank_pattern")
        ),
        alpha_pattern=tuple(
            (key, _alpha(value, f"alpha_pattern[{key[:80]!r}]"))
            for key, value in _pattern(config, "alpha_pattern")
        ),
        target_modules=_target_modules(config),
        exclude_modules=_module_names(config.get("exclude_modules"), "exclude_modules"),
        layers_to_transform=_layers(config.get("layers_to_transform")),
        layers_pattern=_layers_pattern(config.get("layers_pattern")),
    )


def _unsupported_features(config: dict[str, Any]) -> list[str]:
    found = []
    if config.get("peft_type") != "LORA":
        found.append(f"peft_type {_shown(config.get('peft_type'))} (only LORA)")
    if config.get("task_type") not in ("CAUSAL_LM", None):
        found.append(f"task_type {_shown(config['task_type'])} (only CAUSAL_LM)")
    if config.get("bias", "none") not in ("none", None):
        found.append(f"bias {_shown(config['bias'])} (only none)")
    init = config.get("init_lora_weights", True)
    if not any(init is plain or (isinstance(init, str) and init == plain) for plain in _PLAIN_INITS):
        found.append(f"init_lora_weights {_shown(init)} (may change the base weights)")
    for name, value in config.items():
        if not value or name in _HONOURED or name in _HARMLESS:
            continue
        found.append(f"{name} ({_REFUSED[name]})" if name in _REFUSED else f"{name[:80]} (unknown field)")
    return found


def _shown(value: Any) -> str:
    return repr(value)[:80]


def _rank(value: Any, field: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_CONFIG_RANK:
        return value
    raise _at_fault(field, f"must be an integer in [1, {MAX_CONFIG_RANK}]")


def _alpha(value: Any, field: str) -> float:
    # Zero would be the bare base under the adapter's name.
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < abs(value) <= MAX_ABS_ALPHA:
        return float(value)
    raise _at_fault(field, f"must be a number, not 0, of at most {MAX_ABS_ALPHA:g}")


def _flag(value: Any, field: str) -> bool:
    if value is None or isinstance(value, bool):
        return bool(value)
    raise _at_fault(field, "must be true or false")


def _pattern(config: dict[str, Any], field: str) -> list[tuple[str, Any]]:
    value = config.get(field) or {}
    if not isinstance(value, dict) or len(value) > _MAX_LIST:
        raise _at_fault(field, f"must be an object of at most {_MAX_LIST} entries")
    _check_patterns(list(value), [as_suffix(key) for key in value], field)
    return list(value.items())


def _target_modules(config: dict[str, Any]) -> tuple[str, ...] | str:
    names = _module_names(config.get("target_modules"), "target_modules")
    if not names:
        raise _at_fault("target_modules", "must name at least one module")
    return ALL_LINEAR if isinstance(names, str) and names.lower() == ALL_LINEAR else names


def _module_names(value: Any, field: str) -> tuple[str, ...] | str:
    if value is None:
        return ()
    if isinstance(value, str):
        if value.lower() != ALL_LINEAR:
            compile_pattern(value)
        return value
    if isinstance(value, list) and len(value) <= _MAX_LIST and all(isinstance(v, str) and v for v in value):
        return tuple(sorted(set(value)))
    raise _at_fault(field, "must be a list of module names or one regular expression")


def _layers(value: Any) -> tuple[int, ...] | None:
    if value is None or value == []:
        return None
    layers = value if isinstance(value, list) else [value]
    if len(layers) <= _MAX_LIST and all(
        isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in layers
    ):
        return tuple(sorted(set(layers)))
    raise _at_fault("layers_to_transform", "must be a layer number or a list of them")


def _layers_pattern(value: Any) -> tuple[str, ...]:
    patterns = [value] if isinstance(value, str) else value or []
    if (
        not isinstance(patterns, list)
        or len(patterns) > _MAX_LIST
        or not all(isinstance(p, str) for p in patterns)
    ):
        raise _at_fault("layers_pattern", "must be a name or a list of names")
    patterns = [pattern for pattern in patterns if pattern]
    _check_patterns(patterns, [as_layers_prefix(pattern) for pattern in patterns], "layers_pattern")
    return tuple(patterns)


def _check_patterns(keys: list[str], patterns: list[str], field: str) -> None:
    if sum(is_complex(key) for key in keys) > MAX_COMPLEX_PATTERNS:
        raise _at_fault(field, f"has more than {MAX_COMPLEX_PATTERNS} regular expressions")
    for pattern in patterns:
        compile_pattern(pattern)


def _at_fault(field: str, problem: str) -> AdapterInvalidError:
    return AdapterInvalidError(f"{CONFIG_FILE}: {field} {problem}", field)
