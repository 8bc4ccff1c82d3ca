"""Logging: one readable line per decision, to stderr.

    2026-11-20 14:41:34.123 6379 info  backup 127.0.0.1:6380 is a member, epoch 1 -> 2

Local time, the node (its port), the level, the text. Modules use the standard library:
`log = logging.getLogger(__name__)`, with both numbers of every comparison in the text.
"""

from __future__ import annotations

import logging
import sys
import time

ROOT_LOGGER = "holdfast"

LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
_LEVEL_WIDTH = 5  # of `error`, and of `info` padded; `warning` sticks out, as it should

# Text from a client (a name, an address) must not forge a line of its own or drive a terminal.
_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))} | {
    ord("\n"): "\\n",
    ord("\r"): "\\r",
    ord("\t"): "\\t",
}


class LineFormatter(logging.Formatter):
    """`label` stands for the node in every line; a traceback follows its line, indented."""

    def __init__(self, label: str) -> None:
        super().__init__()
        self.label = label

    def format(self, record: logging.LogRecord) -> str:
        instant = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.created))
        level = record.levelname.lower().ljust(_LEVEL_WIDTH)
        text = record.getMessage().translate(_ESCAPES)
        line = f"{instant}.{int(record.msecs):03d} {self.label} {level} {text}"
        if not record.exc_info:
            return line
        trace = self.formatException(record.exc_info).replace("\n", "\n    ")
        return f"{line}\n    {trace}"


def set_up(level: str, label: str | int) -> None:
    """Sends the lines of all of holdfast to stderr, from `level` up.

    A second call replaces the first. Raises KeyError for an unknown level.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter(str(label)))
    logger = logging.getLogger(ROOT_LOGGER)
    for old in list(logger.handlers):
        logger.removeHandler(old)
    logger.addHandler(handler)
    logger.propagate = False
    set_level(level)


def set_level(level: str) -> None:
    """Changes the level of a running process. Raises KeyError for an unknown one."""
    logging.getLogger(ROOT_LOGGER).setLevel(LEVELS[level])


def set_label(label: str | int) -> None:
    """Renames the node in the lines to come: `--port 0` learns its port after the set-up."""
    for handler in logging.getLogger(ROOT_LOGGER).handlers:
        if isinstance(handler.formatter, LineFormatter):
            handler.formatter.label = str(label)
