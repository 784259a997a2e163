"""Nested dicts by path, and back; which paths end in a pattern."""

import re
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


def shape_differences(read: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """One line for each path whose leaf is absent from one of two nested dicts or has another shape there."""
    before, now = dict(flat(read)), dict(flat(wanted))
    lines = []
    for path in sorted(before.keys() | now.keys()):
        there, here = (str(list(leaves[path].shape)) if path in leaves else "absent" for leaves in (before, now))
        if there != here:
            lines.append(f"{path}: {there} in the weights, {here} in the model")
    return lines


def path_end(pattern: str) -> re.Pattern[str]:
    """Finds paths that end in a pattern, from a whole name on: "bias" is the end of "a/bias", not of "a/no_bias".

    Raises:
        re.error: the pattern is no regular expression that can stand within another.
    """
    return re.compile(rf"(^|/)({pattern})$")
