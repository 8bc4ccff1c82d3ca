"""A node without a peer: for tests of what a single node says."""

from __future__ import annotations

from .processes import Cluster, Node, wait_until


def alone(cluster: Cluster, *arguments: str) -> Node:
    """A primary-only node that serves."""
    node = cluster.node("N").start(*(arguments or ("--log-level", "info")))
    wait_until(node.answers, "the node answers", [node])
    return node


def info_of(node: Node, *sections: str) -> dict[str, str]:
    """INFO as a dict; `*sections` as INFO takes them."""
    text = node.ask("INFO", *sections)
    assert isinstance(text, bytes)
    lines = (line.partition(":") for line in text.decode().split("\r\n"))
    return {name: value for name, colon, value in lines if colon}


def config_of(node: Node, *names: str) -> dict[str, str]:
    """CONFIG GET as a dict."""
    flat = node.ask("CONFIG", "GET", *names)
    assert isinstance(flat, list)
    texts = [item.decode() for item in flat]
    return dict(zip(texts[::2], texts[1::2], strict=True))
