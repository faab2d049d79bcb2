"""What a data build did, as a document: every count, no personal value, examples masked."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

MAX_EXAMPLES = 5
MAX_LISTED = 200  # rejected and overlong rows that are listed; all are counted


class Part(BaseModel):
    """A part of the report."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FileReport(Part):
    """One file."""

    file: str
    format: str
    rows: int  # answers that could be trained on
    rejected: int
    unreadable: str | None = None  # why nothing of it could be read
    licence: str | None = None
    attribution: str | None = None


class Place(Part):
    """A row that went, and why."""

    origin: str
    reason: str


class Example(Part):
    """A row as people read it; masked and cut."""

    origin: str
    question: str
    answer: str
    note: str = ""


class DocumentsReport(Part):
    """Questions over documents."""

    documents: int = 0
    pages: int = 0
    chunks: int = 0
    questions: int = 0
    by_rule: dict[str, int] = Field(default_factory=dict)


class LintReport(Part):
    """Templates in rows; counts are of rows."""

    mode: str
    found: dict[str, int]
    fixed: int
    dropped: int
    role_markers_removed: int  # before turns, while reading


class PiiReport(Part):
    """Personal data. Hashes are salted by a number that is thrown away: they compare values of this report only."""

    action: str
    rows: int
    dropped: int
    by_kind: dict[str, int]
    by_source: dict[str, dict[str, int]]
    distinct_values: int
    most_frequent: dict[str, int]  # salted hash → how often


class QualityReport(Part):
    """Short answers."""

    mode: str
    min_chars: int
    candidates: int
    dropped_by_reason: dict[str, int]
    dropped_examples: list[Example]
    kept_examples: list[Example]


class ConflictReport(Part):
    """One question with several answers."""

    question: str
    answers: list[Example]


class DuplicatesReport(Part):
    """What was there more than once."""

    exact: int
    near: int
    near_threshold: float | None
    clusters: int
    largest: list[Example]
    conflicts: int
    conflict_rows_dropped: int
    conflict_examples: list[ConflictReport]


class HeldOutReport(Part):
    """Rows that asked what is asked at the end."""

    against: list[str]
    missing: list[str]
    exact: int
    near: int


class SplitReport(Part):
    """Rows of each part; by tier, "none" where rows have none."""

    train: int
    val: int
    train_by_tier: dict[str, int]
    val_by_tier: dict[str, int]


class AugmentReport(Part):
    """New questions."""

    method: str
    factor: int
    rows: int
    refused: int


class GeneralReport(Part):
    """General conversations. The share is of the final mix: domain rows for training, augmented ones, and these."""

    path: str | None
    share: float
    rows: int
    available: int


class LengthsReport(Part):
    """Tokens of rows, general ones among them."""

    is_measured: bool
    max_length: int
    histogram: dict[str, int] = Field(default_factory=dict)
    median: int = 0
    max: int = 0
    total_tokens: int = 0
    supervised_share: float = 0.0
    overlong: int = 0
    overlong_rows: list[Place] = Field(default_factory=list)


class DataReport(Part):
    """Report of one data build."""

    recipe: str
    stage: str | None
    sha256: str
    files: list[FileReport]
    documents: DocumentsReport
    rejected: int
    rejected_by_reason: dict[str, int]
    rejected_rows: list[Place]
    lint: LintReport
    pii: PiiReport
    quality: QualityReport
    duplicates: DuplicatesReport
    held_out: HeldOutReport
    size: str  # the verdict on the number of rows
    split: SplitReport
    augment: AugmentReport
    general: GeneralReport
    lengths: LengthsReport
    preview: list[Example]  # what is trained is the answer
    warnings: list[str]
    problems: list[str]  # why the rows cannot be trained on; empty in a build that succeeded
