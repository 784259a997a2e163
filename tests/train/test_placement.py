"""What a run says when it resumes on other devices."""

from r2d2_jax.train.placement import described_move


def test_what_changes_is_said() -> None:
    four = {"processes": 4, "mesh": {"data": 16, "fsdp": 1}}
    one = {"processes": 1, "mesh": {"data": 2, "fsdp": 4}}
    assert described_move(four, four, 64) == ""
    assert described_move(four, one, 64) == (
        "the run moves from 4 processes with the mesh data 16 x fsdp 1 to 1 process with the mesh data 2 x fsdp 4: a "
        "device gets 8 pairs of each batch in place of 4. Batch, data position and learning rate stay, every record is "
        "seen as often as without the move, and figures differ by rounding alone"
    )
    other = {"processes": 4, "mesh": {"data": 4, "fsdp": 4}}
    assert ": a device gets 4 pairs of each batch, as before. Batch, " in described_move(four, other, 64)
