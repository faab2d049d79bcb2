"""A base model's sizes, as far as memory and parameter counts depend on them; no weights are read."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from loraplex_adapters.base_spec import LORA_MODULES
from loraplex_server.model.config import DecoderConfig
from loraplex_trainer.errors import RecipeError


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a Llama-like decoder."""

    name: str
    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    tie_embeddings: bool = False
    max_context_tokens: int = 4096

    @property
    def query_size(self) -> int:
        """Width of the queries of all heads."""
        return self.num_heads * self.head_dim

    @property
    def key_size(self) -> int:
        """Width of the keys, and of the values, of all heads."""
        return self.num_kv_heads * self.head_dim

    def module_shape(self, module: str) -> tuple[int, int]:
        """(in_features, out_features) of one of LORA_MODULES in each layer."""
        hidden, inner = self.hidden_size, self.intermediate_size
        return {
            "q_proj": (hidden, self.query_size),
            "k_proj": (hidden, self.key_size),
            "v_proj": (hidden, self.key_size),
            "o_proj": (self.query_size, hidden),
            "gate_proj": (hidden, inner),
            "up_proj": (hidden, inner),
            "down_proj": (inner, hidden),
        }[module]

    def linear_parameters(self, modules: Iterable[str] = LORA_MODULES) -> int:
        """Weights of these modules in all layers."""
        sizes = (self.module_shape(module) for module in modules)
        return self.num_layers * sum(in_size * out_size for in_size, out_size in sizes)

    @property
    def table_parameters(self) -> int:
        """Embedding and output head; a tied table counts once."""
        return self.vocab_size * self.hidden_size * (1 if self.tie_embeddings else 2)

    @property
    def norm_parameters(self) -> int:
        """Scales of all layer norms."""
        return (2 * self.num_layers + 1) * self.hidden_size

    @property
    def parameters(self) -> int:
        """All of the base's parameters, biases left out."""
        return self.linear_parameters() + self.table_parameters + self.norm_parameters

    def trainable_parameters(self, rank: int, modules: Iterable[str]) -> int:
        """Exact size of an adapter: rank × (in + out) for each module of each layer."""
        return self.num_layers * rank * sum(sum(self.module_shape(module)) for module in modules)


PRESETS = {
    shape.name: shape
    for shape in (
        ModelShape("1.3b", 24, 2048, 5504, 16, 16, 128, 32_000),
        ModelShape("7b", 32, 4096, 11_008, 32, 32, 128, 32_000),
        ModelShape("13b", 40, 5120, 13_824, 40, 40, 128, 32_000),
        ModelShape("30b", 60, 6656, 17_920, 52, 52, 128, 32_000, max_context_tokens=2048),
        ModelShape("65b", 80, 8192, 22_016, 64, 64, 128, 32_000, max_context_tokens=2048),
        ModelShape("70b", 80, 8192, 28_672, 64, 8, 128, 32_000),
    )
}
"""Shapes of the Llama family under the sizes that people call them by, smallest first."""


def model_shape(folder_or_preset: Path | str) -> ModelShape:
    """The shape of a base's folder, read from its config.json, or of one of PRESETS.

    Raises RecipeError for an unknown name, BaseModelError for a folder that is not a supported base.
    """
    preset = PRESETS.get(str(folder_or_preset).lower())
    if preset is not None:
        return preset
    folder = Path(folder_or_preset)
    if not folder.is_dir():
        raise RecipeError(
            f"no base '{folder_or_preset}'; give a Hugging Face folder or one of {', '.join(PRESETS)}"
        )
    config = DecoderConfig.from_folder(folder)
    return ModelShape(
        name=folder.resolve().name,
        num_layers=config.num_layers,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        vocab_size=config.vocab_size,
        tie_embeddings=config.tie_embeddings,
        max_context_tokens=config.max_position_embeddings,
    )
