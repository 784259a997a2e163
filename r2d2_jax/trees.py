"""Nested dicts by path, and back."""

from collections.abc import Iterator, Mapping
from typing import Any


def flat(tree: Mapping[str, Any], separator: str = "/", prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (path, leaf) of a nested dict, such as ("image_encoder/class_embedding", ...)."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from flat(value, separator, f"{prefix}{name}{separator}")
        else:
            yield prefix + name, value


def nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flat` with "/" between the names."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *folders, name = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = leaf
    return tree
