"""View registers that last: where the view of a pair is kept outside its nodes (``core/view.py``).

file      a file on the machine of the first backup (``--view backup``)
etcd      a key of an etcd cluster (``--view etcd://...``)

All calls block, so a node makes them in a thread. Each register answers ``get`` and ``cas`` for the
nodes and ``init`` for the operator, and none of them ever makes a view up: what is missing or
damaged is refused until an operator has said what to do (``rules.py``).
"""

from .errors import DamagedRegister, RegisterError
from .etcd import EtcdRegister
from .file import FileRegister

__all__ = ["DamagedRegister", "EtcdRegister", "FileRegister", "RegisterError"]
