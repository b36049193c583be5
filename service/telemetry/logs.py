"""Structured logs. In: log records. Out: one JSON object a line on standard error, UTC, for machines and people."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

import orjson

from service.errors import utf8
from service.telemetry.log_handler import StandardError

FIELDS = "fields"  # the `extra` key whose dictionary goes into the line


class JsonFormatter(logging.Formatter):
    """Writes a record as one line: time, level, logger, process, message, `FIELDS`, and `exception` if it has one."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
        }
        line.update(getattr(record, FIELDS, {}))
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        sendable = {name: utf8(value) if isinstance(value, str) else value for name, value in line.items()}
        return orjson.dumps(sendable, default=str).decode()


def log_config(level: str) -> dict[str, object]:
    """For logging.config and for uvicorn, which passes it on to its worker processes."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": JsonFormatter}},
        "handlers": {"stderr": {"()": StandardError, "formatter": "json", "stream": "ext://sys.stderr"}},
        # Pillow's debug lines are what callers' pictures say of themselves: where they were taken, and who is on them.
        "loggers": {"PIL": {"level": "INFO" if level == "debug" else level.upper()}},
        "root": {"handlers": ["stderr"], "level": level.upper()},
    }
