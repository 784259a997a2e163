"""What programs wrap around a model's tensors: dicts that hold the state dict, and prefixes of its names.

PyTorch's wrappers put a word of their own into names. Frameworks keep the state dict beside the optimizer, under a key.
Neither is the model's, and a reader of weights that knows its names need not know who saved them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from r2d2_jax.errors import FIRST_NAMES, UserError

Tensor = TypeVar("Tensor")

PUBLISHED_KEY = "model"  # of R2D2's own files, which hold nothing else
# Where programs keep the state dict, in the order of preference: PyTorch's tutorials, Lightning, DeepSpeed and others.
_KEYS = (PUBLISHED_KEY, "state_dict", "module", "model_state_dict", "model_state", "net", "network", "weights")
_AVERAGES = ("state_dict_ema", "model_ema", "ema", "ema_state_dict", "ema_model", "model_ema_state_dict")
# What wrappers put into names, wherever they wrap: torch.compile, FSDP, activation checkpointing, Fabric, DDP.
_WRAPPERS = {
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
    "_forward_module": "Lightning Fabric",
    "module": "DataParallel or DDP",
}
_COUNTERS = ("n_averaged",)  # of torch's AveragedModel, beside the names below "module."
_COPIES = {"ema", "averaged", "teacher", "momentum", "m"}  # words of a prefix that say: another copy of the model


def state_dict(loaded: Mapping[Any, Any], is_tensor: Any, source: str) -> tuple[dict[str, Any], list[str]]:
    """The innermost state dict of what a file holds.

    Args:
        loaded: what was read, tensors or dicts by name.
        is_tensor: says whether a value is a tensor.
        source: the path of the file, for messages.

    Returns:
        name -> tensor, and notes on which was taken and what was left.

    Raises:
        UserError: there is no tensor, or there are several state dicts and no key says which is the model.
    """
    notes = []
    while key := _model_key(loaded, is_tensor, source):
        beside = [str(other) for other in loaded if other != key]
        if beside or key != PUBLISHED_KEY:
            notes.append(
                f"state dict under {key!r}" + (f", beside it and left out: {listed(beside)}" if beside else "")
            )
        loaded = loaded[key]
    tensors = {str(name): value for name, value in loaded.items() if is_tensor(value)}
    if not tensors:
        raise UserError(
            f"{source} holds no tensors{', only ' if loaded else ''}{listed(map(str, loaded))}; expected a state dict, "
            "or a dict with one as 'model' or 'state_dict'"
        )
    if others := [str(name) for name, value in loaded.items() if not is_tensor(value)]:
        notes.append(f"left out what is no tensor: {listed(others)}")
    return tensors, notes


def _model_key(loaded: Mapping[Any, Any], is_tensor: Any, source: str) -> str | None:
    """The key of the state dict to take; None if `loaded` is one itself."""
    inner = [key for key, value in loaded.items() if isinstance(value, Mapping) and _holds_tensors(value, is_tensor)]
    for key in (*_KEYS, *_AVERAGES):
        if key in inner:
            return key
    candidates = [key for key in inner if not str(key).lower().startswith(("optim", "sched", "scaler"))]
    direct = sum(is_tensor(value) for value in loaded.values())
    if not candidates or direct >= max(len(loaded[key]) for key in candidates):
        return None
    if len(candidates) > 1:
        raise UserError(
            f"{source} holds several state dicts, under {listed(map(str, candidates))}; save the one of the model "
            "alone, or under 'model'"
        )
    return candidates[0]


def _holds_tensors(values: Mapping[Any, Any], is_tensor: Any) -> bool:
    """Whether tensors stand under names, here or one dict further in; an optimizer's stand under numbers."""
    named = {name: value for name, value in values.items() if isinstance(name, str)}
    inner = (value for name, value in named.items() if name in _KEYS and isinstance(value, Mapping))
    return any(is_tensor(value) for value in named.values()) or any(_holds_tensors(each, is_tensor) for each in inner)


def without_wrappers(tensors: Mapping[str, Tensor], source: str) -> tuple[dict[str, Tensor], list[str]]:
    """Names without the words that wrappers put into them, and a note on each wrapper.

    Raises:
        UserError: two tensors would have one name.
    """
    plain: dict[str, Tensor] = {}
    found: dict[str, None] = {}
    for name, tensor in tensors.items():
        words = name.split(".")
        found |= dict.fromkeys(word for word in words if word in _WRAPPERS)
        kept = ".".join(word for word in words if word not in _WRAPPERS)
        if kept in plain:
            raise UserError(f"{source} holds {kept} twice, with and without a wrapper's prefix; save one model alone")
        plain[kept] = tensor
    if found:
        plain = {name: tensor for name, tensor in plain.items() if name not in _COUNTERS}
    return plain, [f"names without {word}. of {_WRAPPERS[word]}" for word in found]


@dataclass(frozen=True)
class OneModel(Generic[Tensor]):
    """The tensors of one model among others.

    prefix: what their names begin with in the file, "" or a name with a full stop. inside: the tensors, by names
    without the prefix. outside: the others, by their names in the file.
    """

    prefix: str
    inside: dict[str, Tensor]
    outside: dict[str, Tensor]

    def notes(self) -> list[str]:
        """What was taken and what was left, for the log."""
        taken = [f"names without {self.prefix}"] if self.prefix else []
        return taken + ([f"left out {len(self.outside)} tensor(s): {listed(self.outside)}"] if self.outside else [])


def one_model(tensors: Mapping[str, Tensor], anchors: tuple[str, ...], source: str) -> OneModel[Tensor]:
    """Finds a model among a file's tensors by one that every such model has.

    Args:
        tensors: name -> tensor.
        anchors: names without a prefix, of which a model has one.
        source: the path of the tensors, for messages.

    Returns:
        The model whose prefix says that it is no copy such as an average. Everything is inside if there is no anchor.

    Raises:
        UserError: there are several models.
    """
    ends = [(name, anchor) for name in tensors for anchor in anchors if f".{name}".endswith(f".{anchor}")]
    prefixes = list(dict.fromkeys(name.removesuffix(anchor) for name, anchor in ends)) or [""]
    originals = [prefix for prefix in prefixes if not _is_copy(prefix)] or prefixes
    if len(originals) > 1:
        raise UserError(
            f"{source} holds several such models, with names that begin with {listed(map(repr, originals))}; "
            "save one alone"
        )
    prefix = originals[0]
    copies = tuple(other for other in prefixes if other != prefix)
    ours = {name for name in tensors if name.startswith(prefix) and not (copies and name.startswith(copies))}
    inside = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name in ours}
    return OneModel(prefix, inside, {name: tensor for name, tensor in tensors.items() if name not in ours})


def _is_copy(prefix: str) -> bool:
    return not _COPIES.isdisjoint(prefix.lower().replace("_", ".").split("."))


def listed(names: Iterable[str]) -> str:
    """The first names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - FIRST_NAMES} more" if len(names) > FIRST_NAMES else ""
    return ", ".join(names[:FIRST_NAMES]) + more
