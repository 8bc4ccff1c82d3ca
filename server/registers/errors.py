"""What a register raises. The texts are for the operator: what is wrong, and what to do."""

from __future__ import annotations


class RegisterError(Exception):
    """The register cannot be used now; whoever asked asks again."""


class DamagedRegister(RegisterError):
    """What is kept is missing or unreadable. It is refused, never reset: an operator decides."""
