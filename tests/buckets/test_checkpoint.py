"""A bucket that refuses a checkpoint: one message with what to do, and what was saved before stays."""

import pytest
from bucket_server import EXPIRED, FORBIDS, BucketServer
from small_model import assert_bitwise_equal, named_leaves
from small_states import CONFIG, abstract, saved, state_of

from r2d2_jax.buckets.path import ROLES, BucketError, BucketPath
from r2d2_jax.train.checkpoint import Checkpoints

LOG_IN = (
    "the credentials are absent or have expired: run `gcloud auth application-default login`, or give the machine a"
)
GIVE = f"give its account {' and '.join(ROLES)} of the bucket"


def save_step_4(checkpoints: Checkpoints) -> None:
    checkpoints.save(state_of(4), CONFIG, {"pairs": 4})
    checkpoints.wait()


@pytest.mark.parametrize(("fault", "remedy"), [(EXPIRED, LOG_IN), (FORBIDS, GIVE)], ids=["expired", "forbidden"])
def test_refused_in_the_middle_of_a_run(fault: int, remedy: str, bucket: BucketPath, server: BucketServer) -> None:
    checkpoints = saved(bucket, {3: None})
    with server.faulty(fault):
        with pytest.raises(BucketError) as refused:
            save_step_4(checkpoints)
        checkpoints.close()
    said = str(refused.value)
    assert said.startswith(f"cannot write a checkpoint to {bucket}/checkpoints: ")
    assert remedy in said
    assert said.endswith(
        f"; what was saved before is in {bucket}/checkpoints; mend that, then run the same command again to resume"
    )
    again = Checkpoints(bucket, CONFIG.train)
    assert again.latest_step() == 3
    found, _ = again.restore(abstract(state_of(3)), CONFIG)
    assert_bitwise_equal(named_leaves(found), named_leaves(state_of(3)))
    again.close()


@pytest.mark.parametrize(("fault", "remedy"), [(EXPIRED, LOG_IN), (FORBIDS, GIVE)], ids=["expired", "forbidden"])
def test_refused_while_arrays_are_written(
    fault: int, remedy: str, bucket: BucketPath, server: BucketServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By TensorStore, in its own words, which alone is refused."""
    checkpoints = saved(bucket, {3: None})
    with monkeypatch.context() as patch:
        patch.setattr(server, "fault_of_arrays", fault)
        with pytest.raises(BucketError) as refused:
            save_step_4(checkpoints)
        checkpoints.close()
    said = str(refused.value)
    assert said.startswith(f"cannot write a checkpoint to {bucket}/checkpoints: ")
    assert f"; the last good checkpoint is step 3 in {bucket}/checkpoints; {remedy}" in said
    assert said.endswith(", then run the same command again to resume")
