"""Reports as JSON files: checked before the work, written whole after it."""

import json
from typing import Any

from r2d2_jax.atomic import check_writable, written_whole
from r2d2_jax.errors import UserError
from r2d2_jax.paths import path_or_bucket


def check_json_path(path: str) -> None:
    """Checks before the work that a report can be written to a file; makes its folder if absent.

    Raises:
        UserError: it cannot be written.
    """
    file = path_or_bucket(path)
    try:
        check_writable(file)
    except OSError as error:
        raise UserError(
            f"--json={path} cannot be written: {error.strerror}; name a file in a folder that can be written to"
        ) from error


def write_json(document: dict[str, Any], path: str) -> None:
    """Writes plain JSON values to a file.

    Raises:
        UserError: it cannot be written.
    """
    with written_whole(path_or_bucket(path)) as unfinished:
        unfinished.write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
