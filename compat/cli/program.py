"""What the client commands share: the parser, durations, exit codes, and errors of one line."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import sys
import threading
from collections.abc import Callable, Sequence
from typing import NoReturn

from .. import arguments
from ..arguments import LEASE_MS_MAX as LEASE_MS_MAX
from ..arguments import NAME_BYTES_MAX as NAME_BYTES_MAX

EXIT_USAGE = 2
# Those that <sysexits.h> has a word for are called what it calls them (lockf(1) does the same for
# a lock that is taken); "lost" has none, and takes the first number after its last.
EXIT_UNAVAILABLE = 69
EXIT_HELD = 75
EXIT_LOST = 79
# As timeout(1) and the shells have them.
EXIT_STOPPED = 124
EXIT_CANNOT_EXECUTE = 126
EXIT_NOT_FOUND = 127
EXIT_BY_SIGNAL = 128
EXIT_INTERRUPTED = 130


# Before we end, a slow reader of stderr is given so long; one that has stopped is not waited for.
SPEECH_S = 1.0

_UNITS_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_TOKEN = re.compile(r"[0-9]{1,19}")
_DURATION = re.compile(r"([0-9]{1,12})(ms|s|m|h|d)")


class Failure(Exception):
    """What ends a command: an exit code, and a line that says why."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Parser(argparse.ArgumentParser):
    """argparse, saying in the last line of an error where to read on."""

    def __init__(self, command: str, description: str, epilog: str) -> None:
        super().__init__(
            prog=f"holdfast {command}",
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            # A prefix that is unique today may be ambiguous tomorrow.
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Raises SystemExit(2)."""
        self.exit(EXIT_USAGE, f"{self.prog}: {one_line(message)}\nTry '{self.prog} --help'.\n")


def guarded(run: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> int:
    """The exit code of `run`, with one line for what is known to go wrong and no traceback."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # in any locale
    try:
        code = run(arguments)
        # Not print(flush=True): that writes, if only nothing, and waits where a line of ours does.
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except Failure as failure:
        say(str(failure))
        return failure.code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has enough; nothing more can be written, at exit neither.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BY_SIGNAL + 13
    finally:
        if _speech is not None:
            _speech.join(SPEECH_S)


def say(text: str) -> None:
    """One line to stderr; what it quotes cannot drive the terminal. Never waits, whoever reads it
    (or has pressed Ctrl-S): there may be a command to be stopped. `guarded` gives it time at last.
    """
    global _speech
    line = f"holdfast: {one_line(text)}\n"
    # A daemon: the end of this process does not wait for it either.
    _speech = threading.Thread(target=_speak, args=(line, _speech), daemon=True)
    _speech.start()


# Says the line that was to be said last.
_speech: threading.Thread | None = None


def _speak(line: str, before: threading.Thread | None) -> None:
    if before is not None:
        before.join()
    if sys.stderr is not None:  # it was closed before we began
        with contextlib.suppress(OSError):
            _write(line)


def _write(line: str) -> None:
    try:
        number = sys.stderr.fileno()
    except OSError:  # no file, as in tests
        print(end=line, file=sys.stderr)
        return
    # Not through sys.stderr: a thread that hangs in there has its lock, which the end needs.
    os.write(number, line.encode(sys.stderr.encoding, errors="backslashreplace"))


def one_line(text: str) -> str:
    """`text` with everything escaped that is no visible character of one line: control characters,
    invisible ones, those that turn the direction of writing, and bytes that are not UTF-8 (\\xff).
    """
    return "".join(map(_visible, text))


def printable(name: bytes) -> str:
    """A name or an owner as it may be shown: as `one_line`, and a backslash doubled, so that no two
    look the same.
    """
    return one_line(name.decode(errors="surrogateescape").replace("\\", "\\\\"))


def quoted(name: bytes) -> str:
    """A name within a sentence."""
    return f"'{printable(name)}'"


def _visible(character: str) -> str:
    if character.isprintable():
        return character
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def duration(text: str) -> int:
    """Milliseconds from text such as 500ms, 30s, 5m, 1h; for argparse."""
    found = _DURATION.fullmatch(text)
    if found is None:
        unit = f"; write {text}s for seconds" if text.isascii() and text.isdecimal() else ""
        raise argparse.ArgumentTypeError(
            f"{text!r} is no duration{unit or ', which is a whole number and a unit'} "
            "(500ms, 30s, 5m, 1h, 1d)"
        )
    return int(found[1]) * _UNITS_MS[found[2]]


def lease(text: str) -> int:
    """A duration that can be a lease, in milliseconds; for argparse."""
    length_ms = duration(text)
    if not 1 <= length_ms <= LEASE_MS_MAX:
        raise argparse.ArgumentTypeError(f"must be from 1ms to 365d, not {text}")
    return length_ms


def lock_name(text: str) -> bytes:
    """The bytes of a lock's name; for argparse."""
    try:
        return arguments.lock_name(os.fsencode(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def fencing_token(text: str) -> int:
    """A fencing token that is written in digits; for argparse."""
    if _TOKEN.fullmatch(text) is None:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no fencing token, which is a number from 1 to 2^63-1"
        )
    try:
        return arguments.fencing_token(int(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def split_command(parser: Parser, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """What was given before `--`, and the command that stands after it."""
    own, dashes, command = list(argv), "--" in argv, []
    if dashes:
        at = own.index("--")
        own, command = own[:at], own[at + 1 :]
    elif not {"-h", "--help"} & set(own):
        parser.error(
            f"there is no command; write it after --, as in: {parser.prog} NAME -- COMMAND"
        )
    given = parser.parse_args(own)
    if not command:
        parser.error("there is no command after --")
    return given, command
