"""Bytes in, requests out: a strict, incremental parser of RESP requests and inline commands.

Theory of operation
-------------------
Nearly every chunk that arrives holds whole requests in their one canonical form,
``*N\\r\\n`` followed by N times ``$len\\r\\n<len bytes>\\r\\n``. For those there is a fast path:
split the chunk at CRLF, which yields header, argument, header, argument, ..., and accept a request
only if every header is *exactly* the one that its argument's length calls for. That comparison is
the whole proof: a wrong length, a leading zero, a nested array, a null, a missing CRLF or a CRLF
inside an argument all make some header differ. Nothing is allocated by what a header promises.

Whatever does not pass (a request cut by the end of the chunk, an argument with CRLF in it, an
inline command, garbage) goes to the strict path, which reads header by header, keeps what is
incomplete, and answers faults in the words that Redis uses.

Why not hiredis here: it parses *replies*. It takes integers, nulls and nested arrays for a request,
does not look at the CRLF behind an argument, and allocates whatever an array header promises
(``*2000000000`` is 16 GB). Guarding it (a regex before, a check of the result after) cost more per
request than the split above, which is strict by construction.

Limits (Redis has larger ones of the same kind): elements, inline length and bytes of one request.
Headers are judged as soon as they are complete, so a request over a limit is refused before its
arguments are buffered.
"""

from __future__ import annotations

import re

from .errors import ProtocolError

ELEMENTS_MAX = 1024
"""Arguments of one request, its command name included."""
INLINE_BYTES_MAX = 64 * 1024
"""Length of an inline command, and of a header line, without its line end."""
REQUEST_BYTES_MAX = 1024 * 1024
"""Bytes of one request as it stands on the wire."""

_CRLF = b"\r\n"
_FAST_BULK_MAX = 4096
# Header of an argument by its length, header of a request by its text: comparing with a
# ready-made header is several times cheaper than reading the number out of the one received.
_BULK_HEADER = tuple(b"$%d" % length for length in range(_FAST_BULK_MAX))
_COUNT = {b"*%d" % count: count for count in range(1, ELEMENTS_MAX + 1)}
_INTEGER = re.compile(rb"0|-?[1-9][0-9]{0,18}")
_INT64 = range(-(2**63), 2**63)


class Decoder:
    """The parser of one connection. ``feed`` it what arrives; it returns the whole requests.

    After a fault ``error`` is set: the requests before it are good, nothing after it is read.
    """

    __slots__ = ("_arguments", "_between_requests", "_buffer", "_missing", "_size", "error")

    def __init__(self) -> None:
        self.error: ProtocolError | None = None
        self._between_requests = True  # nothing is buffered, nothing is wrong
        self._buffer = bytearray()
        self._arguments: list[bytes] = []
        self._missing = 0  # arguments that the request being read still lacks
        self._size = 0  # bytes of the request being read so far

    def feed(self, data: bytes) -> list[list[bytes]]:
        """Take the next bytes of the connection; return the requests that are now complete."""
        if self._between_requests and len(data) <= REQUEST_BYTES_MAX:
            parts = data.split(_CRLF)
            # One LOCK or UNLOCK, the whole chunk: half of the time of the general way.
            if len(parts) == 8:
                count, header, name, header1, first, header2, second, rest = parts
                if (
                    count == b"*3"
                    and not rest
                    and len(data) < _FAST_BULK_MAX
                    and header == _BULK_HEADER[len(name)]
                    and header1 == _BULK_HEADER[len(first)]
                    and header2 == _BULK_HEADER[len(second)]
                ):
                    return [[name, first, second]]
            requests: list[list[bytes]] = []
            rest = _read_canonical(parts, requests)
        elif self.error is not None:
            return []
        else:
            requests, rest = [], data
        if rest:
            self._continue(rest, requests)
        return requests

    def _continue(self, data: bytes, requests: list[list[bytes]]) -> None:
        """Take what the fast path left: the strict path up to the end of the request that was cut,
        the fast path behind it, and the strict path for the rest."""
        self._buffer += data
        try:
            if not self._between_requests:
                done = len(requests)
                if (
                    self._read_strictly(requests, done + 1)
                    and len(self._buffer) <= REQUEST_BYTES_MAX
                ):
                    data = bytes(self._buffer)
                    self._buffer.clear()
                    self._buffer += _read_canonical(data.split(_CRLF), requests)
            self._read_strictly(requests)
            self._between_requests = not (self._missing or self._buffer)
        except ProtocolError as error:
            self.error = error
            self._between_requests = False
            self._buffer.clear()
            self._arguments.clear()
            self._size = 0

    @property
    def buffered_bytes(self) -> int:
        """What is held of a request that is not complete yet."""
        return len(self._buffer) + self._size

    # -- strict path ----------------------------------------------------------------------------

    def _read_strictly(self, requests: list[list[bytes]], requests_max: int = -1) -> bool:
        """Read requests from the buffer, header by header; True if it stopped at ``requests_max``.

        Raises ProtocolError.
        """
        buffer = self._buffer
        position = 0
        try:
            while len(requests) != requests_max:
                if position >= len(buffer):
                    return False
                if self._missing:
                    step = self._read_argument(position)
                    if step and not self._missing:
                        requests.append(self._arguments)
                        self._arguments = []
                        self._size = 0
                elif buffer[position] == 42:  # "*"
                    step = self._read_count(position)
                elif buffer[position] == 10:  # an empty line: a flood of them must stay cheap
                    step = 1
                else:
                    step = self._read_inline(position, requests)
                if not step:
                    return False
                position += step
            return True
        finally:
            del buffer[:position]

    def _read_header(self, position: int, too_big: str, malformed: str) -> tuple[int, int] | None:
        """The number in the header line at ``position`` and the line's length; None: incomplete."""
        end = self._buffer.find(b"\r", position, position + INLINE_BYTES_MAX + 1)
        if end < 0:
            if len(self._buffer) - position > INLINE_BYTES_MAX:
                raise ProtocolError(too_big)
            return None
        if end + 1 >= len(self._buffer):
            return None
        digits = self._buffer[position + 1 : end]
        if self._buffer[end + 1] != 10 or not _INTEGER.fullmatch(digits):
            raise ProtocolError(malformed)
        number = int(digits)
        if number not in _INT64:
            raise ProtocolError(malformed)
        return number, end + 2 - position

    def _read_count(self, position: int) -> int:
        header = self._read_header(
            position, "too big mbulk count string", "invalid multibulk length"
        )
        if header is None:
            return 0
        count, length = header
        if count > ELEMENTS_MAX:
            raise ProtocolError("invalid multibulk length")
        if count > 0:  # an empty or negative one is no request; Redis ignores it too
            self._missing = count
            self._size = length
        return length

    def _read_argument(self, position: int) -> int:
        if self._buffer[position] != 36:  # "$"
            raise ProtocolError(f"expected '$', got '{_printable(self._buffer[position])}'")
        header = self._read_header(position, "too big bulk count string", "invalid bulk length")
        if header is None:
            return 0
        length, header_length = header
        if not 0 <= length <= REQUEST_BYTES_MAX:
            raise ProtocolError("invalid bulk length")
        size = header_length + length + 2
        if self._size + size > REQUEST_BYTES_MAX:
            raise ProtocolError(f"request larger than {REQUEST_BYTES_MAX} bytes")
        start = position + header_length
        if len(self._buffer) < start + length + 2:
            return 0
        if self._buffer[start + length : start + length + 2] != _CRLF:
            raise ProtocolError("expected CRLF behind an argument")
        self._arguments.append(bytes(self._buffer[start : start + length]))
        self._missing -= 1
        self._size += size
        return size

    def _read_inline(self, position: int, requests: list[list[bytes]]) -> int:
        end = self._buffer.find(b"\n", position, position + INLINE_BYTES_MAX + 2)
        if end < 0 or self._buffer.find(0, position, end) >= 0:
            # (As in Redis nothing behind a NUL counts as arrived: garbage ends here, soon.)
            length = len(self._buffer) - position - self._buffer.endswith(b"\r")
            if length > INLINE_BYTES_MAX:
                raise ProtocolError("too big inline request")
            return 0
        line = bytes(self._buffer[position:end])
        if line.endswith(b"\r"):
            line = line[:-1]
        if len(line) > INLINE_BYTES_MAX:
            raise ProtocolError("too big inline request")
        arguments = split_inline(line)
        if arguments is None:
            raise ProtocolError("unbalanced quotes in request")
        if len(arguments) > ELEMENTS_MAX:
            raise ProtocolError("invalid multibulk length")
        if arguments:
            requests.append(arguments)
        return end + 1 - position


def _read_canonical(parts: list[bytes], requests: list[list[bytes]]) -> bytes:
    """Append the requests that a chunk, split at CRLF, starts with; return what is left of it."""
    at = 0
    last = len(parts) - 1  # what follows the last CRLF: empty if the chunk ends with a request
    bulk_header = _BULK_HEADER
    try:
        while at < last:
            # Three arguments is LOCK and UNLOCK: unrolled, it takes half of the time.
            if parts[at] == b"*3" and at + 7 <= last:
                first, second, third = parts[at + 2], parts[at + 4], parts[at + 6]
                if (
                    parts[at + 1] == bulk_header[len(first)]
                    and parts[at + 3] == bulk_header[len(second)]
                    and parts[at + 5] == bulk_header[len(third)]
                ):
                    requests.append([first, second, third])
                    at += 7
                    continue
                break
            count = _COUNT.get(parts[at])
            if count is None:
                break
            end = at + 1 + 2 * count
            if end > last:
                break
            arguments = parts[at + 2 : end : 2]
            if parts[at + 1 : end : 2] != [bulk_header[len(argument)] for argument in arguments]:
                break
            requests.append(arguments)
            at = end
    except IndexError:  # an argument longer than the ready-made headers: the strict path's
        pass
    if at == last:
        return parts[last]
    return _CRLF.join(parts[at:])


_ESCAPES = {"n": b"\n", "r": b"\r", "t": b"\t", "b": b"\b", "a": b"\a"}
_SPACES = frozenset((b" ", b"\t", b"\r", b"\n", b"\v", b"\f"))
_TOKEN = re.compile(
    rb"""
      "((?:[^"\\]|\\.)*)" (?=\s|\Z)          # "..." with escapes
    | '((?:[^'\\]|\\'|\\(?!'))*)' (?=\s|\Z)  # '...' where only \' is one
    | ([^ \t\r\n"']+)                        # a bare word, up to a space (not \v, \f) or a quote
    """,
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(rb"\\(x[0-9a-fA-F]{2}|.)", re.DOTALL)


def split_inline(line: bytes) -> list[bytes] | None:
    """Split a line as the Redis shell does: words, "quoted\\n" and 'quoted'; None: unbalanced.

    As in Redis a quote may open in the middle of a word (``a"b c"`` is one argument), and a closing
    quote must be followed by white space or the end of the line.
    """
    arguments: list[bytes] = []
    position = 0
    while True:
        while line[position : position + 1] in _SPACES:
            position += 1
        if position >= len(line):
            return arguments
        word = b""
        while position < len(line) and line[position : position + 1] not in _SPACES:
            match = _TOKEN.match(line, position)
            if match is None:
                return None
            double, single, bare = match.groups()
            if double is not None:
                word += _ESCAPE.sub(_unescape, double)
            elif single is not None:
                word += single.replace(b"\\'", b"'")
            else:
                word += bare
            position = match.end()
        arguments.append(word)


def _unescape(match: re.Match[bytes]) -> bytes:
    escaped = match.group(1)
    if len(escaped) == 3:
        return bytes((int(escaped[1:], 16),))
    return _ESCAPES.get(escaped.decode("latin-1"), escaped)


def _printable(byte: int) -> str:
    """One byte for an error line: a control character must not break the line."""
    return chr(byte) if 32 <= byte < 127 else "?"
