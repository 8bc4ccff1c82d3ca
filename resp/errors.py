"""What can go wrong on the wire."""


class ProtocolError(Exception):
    """The peer broke RESP. Its text goes out as ``-ERR Protocol error: <text>``.

    The connection on which it happened is answered and closed; no other one is touched.
    """
