"""The dataset with unusable records that the tests of both kinds of batches read."""

import pytest
from small_data import encode, example

from r2d2_jax.data.records import RecordSource
from r2d2_jax.preparation.examples import Example
from r2d2_jax.preparation.writer import write_dataset


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> RecordSource:
    """Eight records in one shard, of which 1, 2, 4 and 7 are unusable for four reasons."""
    folder = tmp_path_factory.mktemp("spoiled")
    records = [example(number) for number in range(8)]
    records[1] = example(1, image=encode((60, 60))[:-200])
    records[2] = Example(encode(), (), "image2")
    records[4] = example(4, "一只狗", " ")
    records[7] = example(7, image_id="")
    write_dataset(folder, {"train": records})
    return RecordSource(folder, "train")
