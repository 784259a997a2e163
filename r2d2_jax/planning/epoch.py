"""How many pairs an epoch of a configured data set has."""

from r2d2_jax.config.data import DataConfig
from r2d2_jax.data.records import dataset_folder, dataset_info
from r2d2_jax.errors import UserError
from r2d2_jax.paths import user_path


def pairs_of_epoch(data: DataConfig) -> int | None:
    """The records of all corpora, of each of which an epoch reads a pair; None where one of them is not here.

    Raises:
        UserError: a data set is here and cannot be read, or has no such split.
    """
    corpora = data.corpora or (data.directory,)
    if not all(user_path(folder).is_dir() for folder in corpora):
        return None
    return sum(_records(folder, data.train_split) for folder in corpora)


def _records(folder: str, split: str) -> int:
    splits = dataset_info(dataset_folder(folder)).splits
    if split not in splits:
        raise UserError(f"{folder} has no split {split!r}; it has {', '.join(splits)}: see data.train_split")
    return splits[split].num_examples
