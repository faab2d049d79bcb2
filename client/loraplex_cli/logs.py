"""Log lines of `loraplex serve`, on standard error: text for people, JSON for collectors."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

# A lost database is told once, with its cause; the pool would add a traceback for each connection. Migrations that find
# nothing to do are no news. What failed at a bucket is told by its kind; the libraries would add URLs and tracebacks,
# for each attempt.
_QUIETER = {
    "sqlalchemy.pool": logging.CRITICAL,
    "alembic": logging.WARNING,
    "gcsfs": logging.CRITICAL,
    "s3fs": logging.CRITICAL,
    "aiobotocore": logging.CRITICAL,
    "botocore": logging.CRITICAL,
    "google.auth": logging.CRITICAL,
    "fsspec": logging.WARNING,
}
_STANDARD_FIELDS = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


def start_logging(log_format: Literal["text", "json"]) -> None:
    """Send INFO and above to standard error."""
    handler = StandardErrorHandler()
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for name, level in _QUIETER.items():
        logging.getLogger(name).setLevel(level)


class StandardErrorHandler(logging.StreamHandler[TextIO]):
    """Writes to what is standard error at the moment: a progress display puts itself in its place."""

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, value: TextIO) -> None:
        """logging sets it once, to what the property says anyway."""


class TextFormatter(logging.Formatter):
    """`time level logger: message key=value …`"""

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {key}={value}" for key, value in extra_fields(record).items())
        line = f"{_moment(record)} {record.levelname} {record.name}: {record.getMessage()}{fields}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One object per line."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": _moment(record),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **extra_fields(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def extra_fields(record: logging.LogRecord) -> dict[str, Any]:
    """What the caller gave as `extra`."""
    return {key: value for key, value in record.__dict__.items() if key not in _STANDARD_FIELDS}


def _moment(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
