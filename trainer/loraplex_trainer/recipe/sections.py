"""The sections of a recipe, with their defaults and ranges. Unknown keys are errors.

Where a field may be "auto", the plan replaces it; `resolved.yaml` holds what it became.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from loraplex_adapters.base_spec import LORA_MODULES

Auto = Literal["auto"]
Share = Annotated[float, Field(ge=0, le=1)]
SourceFormat = Literal[
    "auto",
    "alpaca",
    "sharegpt",
    "messages",
    "prompt-completion",
    "csv",
    "parquet",
    "yaml",
    "text",
    "pdf",
    "html",
]
RANKS = (8, 16, 32, 64, 128)
ATTENTION_MODULES = ("k_proj", "o_proj", "q_proj", "v_proj")
MLP_MODULES = ("down_proj", "gate_proj", "up_proj")


class Section(BaseModel):
    """A part of a recipe: immutable, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class BaseSection(Section):
    """The frozen base."""

    model: str | None = None  # a Hugging Face folder or id; null is the default base
    licence: str | None = None
    fingerprint: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")  # pins the base


class SourceSection(Section):
    """Files of one kind; a pattern may name many."""

    path: str = Field(min_length=1)  # file or glob, relative to the recipe
    format: SourceFormat = "auto"
    licence: str | None = None
    attribution: str | None = None


class DedupSection(Section):
    """Which rows count as one."""

    exact: bool = True
    near: Share | None = 0.85  # Jaccard similarity of character n-grams; null: off


class CleanSection(Section):
    """What is taken out before anything is trained on."""

    pii: Literal["mask", "drop", "off"] = "mask"
    dedup: DedupSection = DedupSection()
    min_chars: int = Field(default=50, ge=0)  # a shorter answer is looked at more closely
    min_chars_mode: Literal["meaningless", "strict", "off"] = "meaningless"
    lint: Literal["fix", "drop", "strict", "off"] = "fix"
    conflicts: Literal["report", "drop"] = "report"  # one question, several answers


class SizeSection(Section):
    """How many rows are enough."""

    warn_below: int = Field(default=10_000, ge=0)
    error_below: int = Field(default=32, ge=1)


class AugmentSection(Section):
    """More questions for the same answers, in the training split alone."""

    method: Literal["none", "synonyms", "paraphrase"] = "none"
    factor: int = Field(default=1, ge=1, le=10)  # new questions for each row
    lexicon: Path | None = None  # TSV of synonyms; null: the bundled one
    server: str | None = None  # paraphrase asks the base that this server holds


class GeneralSection(Section):
    """General conversations mixed in, against forgetting."""

    path: Path | Literal["bundled"] | None = None  # null: none
    share: Annotated[float, Field(ge=0, lt=1)] = 0.10  # of the final mix


class ValSection(Section):
    """The part of the rows that is only evaluated."""

    share: Annotated[float, Field(ge=0, lt=1)] = 0.10
    min: int = Field(default=20, ge=0)
    max: int = Field(default=2000, ge=1)


class QuestionsSection(Section):
    """How questions are made from documents; answers are always spans of the document."""

    written_by: Literal["templates", "model"] = "templates"  # model: the base that `server` holds
    server: str | None = None
    chunk_chars: int = Field(default=1200, ge=200, le=20_000)


class DataSection(Section):
    """From documents to rows."""

    sources: tuple[SourceSection, ...] = Field(min_length=1)
    questions: QuestionsSection = QuestionsSection()
    clean: CleanSection = CleanSection()
    size: SizeSection = SizeSection()
    augment: AugmentSection = AugmentSection()
    general: GeneralSection = GeneralSection()
    val: ValSection = ValSection()
    max_length: int = Field(default=1024, ge=8, le=131_072)  # tokens of a row
    overlong: Literal["drop", "error"] = "drop"


class QuantSection(Section):
    """How the frozen base is held while training. 2 bits and the other backends are experimental."""

    bits: Auto | Literal[16, 8, 4, 2] = "auto"
    type: Literal["nf4", "fp4"] = "nf4"
    double: bool = True
    compute: Auto | Literal["bf16", "fp16", "fp32"] = "auto"
    skip: tuple[str, ...] = ()  # modules, or "attention" / "mlp", that stay unquantized
    backend: Literal["bitsandbytes", "hqq", "aqlm"] = "bitsandbytes"

    @model_validator(mode="after")
    def _two_bits_need_their_backend(self) -> QuantSection:
        if (self.bits == 2) != (self.backend != "bitsandbytes"):
            raise ValueError("2 bits need the backend hqq or aqlm, and those are for 2 bits only")
        return self


class LoraSection(Section):
    """Shape of the adapter."""

    rank: int | Auto = 32
    alpha: float | Auto = "auto"  # 2 × rank
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    targets: Literal["all-linear", "attention"] | tuple[str, ...] = "all-linear"
    rslora: bool = False

    @field_validator("rank")
    @classmethod
    def _known_rank(cls, rank: int | Auto) -> int | Auto:
        if rank != "auto" and not 1 <= rank <= 256:
            raise ValueError("must be within 1 to 256, or auto")
        return rank

    @field_validator("alpha")
    @classmethod
    def _positive_alpha(cls, alpha: float | Auto) -> float | Auto:
        if alpha != "auto" and not 0 < alpha < float("inf"):
            raise ValueError("must be above 0, or auto")
        return alpha

    @field_validator("targets")
    @classmethod
    def _served_modules_only(cls, targets: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if isinstance(targets, str):
            return targets
        unknown = sorted(set(targets) - set(LORA_MODULES))
        if unknown or not targets:
            raise ValueError(f"must name modules out of {', '.join(LORA_MODULES)}, not {unknown}")
        return tuple(sorted(set(targets)))

    def modules(self) -> tuple[str, ...]:
        """The modules that get an adapter, by their last name, sorted."""
        if self.targets == "all-linear":
            return tuple(sorted(LORA_MODULES))
        return ATTENTION_MODULES if self.targets == "attention" else tuple(self.targets)


class EpochsSection(Section):
    """Bounds of a training; early stopping ends it between them."""

    min: int = Field(default=3, ge=0)
    max: int = Field(default=10, ge=1, le=1000)

    @model_validator(mode="after")
    def _ordered(self) -> EpochsSection:
        if self.min > self.max:
            raise ValueError(f"min {self.min} is above max {self.max}")
        return self


class TrainSection(Section):
    """How the adapter is optimized: AdamW."""

    learning_rate: Annotated[float, Field(gt=0, le=0.1)] | Auto = "auto"
    epochs: EpochsSection = EpochsSection()
    patience: int = Field(default=3, ge=0)  # evaluations without a lower perplexity; 0: never stop early
    effective_batch: int = Field(default=16, ge=1)  # rows of an optimizer step
    micro_batch: Annotated[int, Field(ge=1)] | Auto = "auto"
    checkpointing: bool | Auto = "auto"
    optimizer: Auto | Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = "auto"
    weight_decay: float = Field(default=0.0, ge=0)
    scheduler: Literal["constant_with_warmup", "cosine", "linear"] = "constant_with_warmup"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.03  # share of all optimizer steps
    max_grad_norm: float = Field(default=1.0, gt=0)
    packing: bool | Auto = False  # auto: where most rows are short
    seed: int = Field(default=42, ge=0)


class StageSection(Section):
    """One of several trainings of the same adapter, each with a fresh optimizer."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")
    sources: tuple[SourceSection, ...] | None = None  # null: those of `data`
    epochs: EpochsSection | None = None
    learning_rate: Annotated[float, Field(gt=0, le=0.1)] | None = None


class CurriculumSection(Section):
    """Easy rows first: one tier after the other, or each tier with those before it."""

    mode: Literal["off", "staged", "cumulative"] = "off"
    tiers: Literal["auto", "given"] = "auto"  # auto: thirds by the base's loss, where a row has no tier


class OverfitSection(Section):
    """When validation falls behind training."""

    ratio: float = Field(default=1.30, gt=1)
    widening_evals: int = Field(default=2, ge=1)
    on_alarm: Literal["warn", "stop", "rollback"] = "warn"


class SamplesSection(Section):
    """Typical questions answered after every epoch, by the base and by the adapter."""

    n: int = Field(default=10, ge=0, le=200)
    max_new_tokens: int = Field(default=128, ge=1, le=2048)
    pause_if_bad: Share = 0.20  # of the answers, after two epochs in a row


class EvalSection(Section):
    """What is asked at the end."""

    domain: Path | None = None  # held-out questions with graders; null: those of the validation split
    general: tuple[str, ...] = ("mini-mmlu", "mini-glue")  # shipped suites; "lm-eval:TASK" with local data
    on: Literal["served", "fp32", "bf16", "int8", "nf4"] = "served"
    max_questions: int | None = Field(default=None, ge=1)  # of each suite; null: all


class GateSection(Section):
    """What an adapter must show before it is registered. Points are percent of questions."""

    min_domain_gain: float = Field(default=0.0, ge=0, le=100)
    max_general_drop: float = Field(default=2.0, ge=0, le=100)
    max_quality_loss_vs_lora: float = Field(default=3.0, ge=0, le=100)
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    max_bad_samples: Share = 0.10
    min_eos_rate: Share = 0.95


class ResourcesSection(Section):
    """Where the training runs, and to whom it gives way."""

    device: Auto | Literal["cpu", "cuda"] = "auto"
    vram_gb: Annotated[float, Field(gt=0)] | Auto = "auto"
    yield_to: str | None = None  # address of a server: no step while its queue is deep
    max_serving_rank: int | None = Field(default=None, ge=1)  # refuse a higher rank at plan time
    price_per_gpu_hour: Annotated[float, Field(ge=0)] | None = None  # in any currency; the report adds it up
