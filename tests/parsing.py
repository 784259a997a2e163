"""Sources as syntax trees."""

import ast
import gc


def parsed(source: str) -> ast.Module:
    """The syntax tree of a source.

    Nothing is collected meanwhile: CPython 3.11 raises SystemError if a finalizer parses within a parse, and one that
    logs the exception of a forgotten asyncio task does so.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        return ast.parse(source)
    finally:
        if collects:
            gc.enable()
