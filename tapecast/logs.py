"""Logs as events with keys: human-readable in a terminal, JSON lines elsewhere, a file in production.

`TAPECAST_LOG` names the file; then nothing goes to the terminal, and what logrotate moved away is made anew.
"""

import logging
import logging.handlers
import sys
from collections.abc import Mapping
from pathlib import Path

import orjson
import structlog


def set_up(environ: Mapping[str, str]) -> None:
    """Configure structlog for this process."""
    processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    file = environ.get("TAPECAST_LOG")
    if file:
        _to_file(Path(file))
        processors.append(structlog.processors.JSONRenderer(serializer=_json))
        structlog.configure(
            processors, logger_factory=structlog.stdlib.LoggerFactory(), cache_logger_on_first_use=True
        )
        return
    if sys.stderr.isatty():
        processors[2] = structlog.processors.TimeStamper(fmt="%H:%M:%S")
        processors.append(structlog.dev.ConsoleRenderer())
    else:
        processors.append(structlog.processors.JSONRenderer(serializer=_json))
    structlog.configure(
        processors, logger_factory=structlog.PrintLoggerFactory(sys.stderr), cache_logger_on_first_use=True
    )


def _to_file(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.handlers.WatchedFileHandler(path)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])


def _json(event: object, **_: object) -> str:
    return orjson.dumps(event, default=str).decode()
