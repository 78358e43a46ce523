"""How log records look: a line of text for a person, or a line of JSON for a machine."""

from __future__ import annotations

import json
import logging
import time
from typing import Final, Literal

Format = Literal["text", "json"]

_STANDARD: Final = frozenset(vars(logging.makeLogRecord({})))


def configure(level: str, format_: Format) -> None:
    """Sends all log records of this process to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonFormatter() if format_ == "json" else _TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler])


class _TextFormatter(logging.Formatter):
    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")
        self.converter = time.gmtime


class _JsonFormatter(_TextFormatter):
    """The record's own fields, and whatever the caller gave as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        fields |= {name: it for name, it in vars(record).items() if name not in _STANDARD}
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False, default=str)
