"""The client side, on redis-py. Imports neither the server nor its parser."""

from .clerk import Clerk
from .errors import ClerkError, IndeterminateError, UnavailableError

__all__ = ["Clerk", "ClerkError", "IndeterminateError", "UnavailableError"]
