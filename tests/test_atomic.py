"""What cannot be written is one message."""

from pathlib import Path

import pytest

from r2d2_jax.atomic import written_whole
from r2d2_jax.errors import UserError


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    """Nothing can be removed there either, which must not hide the message."""
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match="cannot write .*/file/a/b: .*Not a directory.*; check the folder and the room"),
        written_whole(tmp_path / "file" / "a" / "b"),
    ):
        pytest.fail("there is nowhere to write to")
