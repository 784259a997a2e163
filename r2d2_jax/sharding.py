"""The device mesh, the one table that places every array of the train state, and what keeps activations in place."""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from r2d2_jax.arrays import Batch
from r2d2_jax.config.run import MeshConfig
from r2d2_jax.errors import UserError
from r2d2_jax.models.dropout import DROPOUT, Dropout
from r2d2_jax.trees import path_end

DATA, FSDP = "data", "fsdp"

# What a device takes at a time of the rows of others. libtpu 0.0.52 puts the result of an indexing into on-chip memory,
# and fails to compile one of 16.06 MiB, which are the image tokens of 32 pairs of ViT-L, because 16 MiB is the limit.
EXCHANGED_BYTES = 8 * 2**20

TABLE = r"(word|position)_embedding/embedding"
# First match wins; matched against the end of a leaf's path, such as "memory/teacher/text_encoder/layers/mlp/up/kernel"
# or "opt_state/1/0/mu/.../kernel". Stacked layers have their layer axis in front. Matrices are split along their input
# axis, which is a multiple of every usual device count in all published sizes; the vocabulary is not.
RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"layers/.*/kernel", PartitionSpec(None, FSDP, None)),
    (r"kernel", PartitionSpec(FSDP, None)),
    (TABLE, PartitionSpec(None, FSDP)),
    # Every device reads the whole queue in every step: splitting it would only add traffic.
    (r"queue/.*", PartitionSpec()),
    # Biases, norms, CLIP's position table, scalars and counters: too small to be worth moving.
    (r".*", PartitionSpec()),
)


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh with the axes "data" and "fsdp" over all devices of all processes.

    Raises:
        UserError: the configured axes do not multiply to the number of devices, or slices differ in size.
    """
    devices = jax.devices() if devices is None else devices
    sizes = [config.data, config.fsdp]
    if -1 in sizes:
        sizes[sizes.index(-1)] = max(1, len(devices) // max(1, -sizes[0] * sizes[1]))
    if sizes[0] * sizes[1] != len(devices):
        raise UserError(
            f"mesh.data={config.data} and mesh.fsdp={config.fsdp} do not divide the {len(devices)} devices there are; "
            "set them so that their product is that number, or one of them to -1"
        )
    if len({getattr(device, "slice_index", 0) for device in devices}) > 1:
        placed = over_slices(sizes[0], sizes[1], devices)
    else:
        # An axis of the torus is split only where no other arrangement fits.
        placed = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return Mesh(placed, (DATA, FSDP), axis_types=(AxisType.Auto, AxisType.Auto))


def over_slices(data: int, fsdp: int, devices: Sequence[Any]) -> np.ndarray:
    """Arranges the devices of several slices.

    A slice is one of TPUs, or to JAX the GPUs of one machine: links within it are fast, and a network joins it to the
    others. So as many slices as possible lie along the data axis, where only gradients and embeddings travel; along the
    fsdp axis every layer's parameters do.

    Args:
        data: size of that axis.
        fsdp: size of that axis; both multiply to the number of devices.
        devices: with a `slice_index` each.

    Returns:
        [data fsdp], the devices.

    Raises:
        UserError: slices differ in size.
    """
    sizes = Counter(device.slice_index for device in devices)
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{size} on {number}" for number, size in sorted(sizes.items()))
        raise UserError(
            f"the machines or TPU slices of this run have different numbers of devices: {listed}; "
            "give it as many on each"
        )
    along_data = math.gcd(data, len(sizes))
    along_fsdp = len(sizes) // along_data
    return mesh_utils.create_hybrid_device_mesh(
        (data // along_data, fsdp // along_fsdp),
        (along_data, along_fsdp),
        devices,
        allow_split_physical_axes=True,  # only where no other arrangement fits
    )


def check_batch_divides(batch_size: int, mesh: Mesh, name: str = "train.batch_size", *, micro_batches: int = 1) -> None:
    """Raises UserError unless every device gets the same number of the global batch's rows in each micro batch."""
    parts = mesh.size * micro_batches
    if batch_size % parts:
        each = f"the mesh's {mesh.size} devices"
        if micro_batches > 1:
            each = f"{parts}, which are {each} times train.micro_batches {micro_batches}"
        raise UserError(
            f"{name} {batch_size} is not a multiple of {each}; "
            f"the nearest that is: {max(1, round(batch_size / parts)) * parts}"
        )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows of the global batch split over all devices."""
    return NamedSharding(mesh, PartitionSpec((DATA, FSDP)))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def everywhere(values: jax.Array, mesh: Mesh) -> jax.Array:
    """The same values, whole on every device."""
    return jax.lax.with_sharding_constraint(values, replicated(mesh))


def whole_kernels(mesh: Mesh) -> dict[str, str] | None:
    """Options of the compiler for programs that call `apply_by_rows`: a split kernel is gathered, then multiplied.

    Left alone, libtpu lets the parts of a kernel go around where the fsdp axis has all chips, and multiplies with one
    after the other. Every such product reads and writes the whole result: of ViT-L on 8 v5e a step takes 350 ms by the
    roofline instead of 187 (our decision; docs/scaling.md). Other compilers know neither the way nor the option.
    """
    if mesh.devices.flat[0].platform != "tpu":
        return None
    return {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}  # larger than any kernel


def apply_by_rows(
    model: nn.Module,
    params: Any,
    mesh: Mesh,
    stage: str,
    *inputs: jax.Array,
    dropout: jax.Array | None = None,
    variables: Mapping[str, Any] | None = None,
    mutable: Sequence[str] = (),
) -> Any:
    """One stage of a model whose parameters are placed by `RULES`: parameters travel to the rows, never rows to them.

    Left alone, XLA takes a parameter's split over to whatever is computed with it: activations split along the width,
    and all-reduced in every layer. So what goes into every Dense layer and what comes out, and with them their
    gradients, must stay split by rows; XLA then gathers the kernel, layer by layer inside the scan. An embedding table
    is gathered whole before it is used, since a lookup in a split one gives rows split along the width. Masks of
    dropout are drawn by rows too.

    Args:
        model: the Linen module.
        params: its parameters.
        mesh: the devices.
        stage: the name of the module's method.
        inputs: of the method; the leading axis of each is the global batch, or a multiple of it.
        dropout: random key of the pass; None for a pass without dropout.
        variables: other collections of variables that the stage reads.
        mutable: collections that it fills; with any, the result is (the stage's result, these collections).
    """
    rngs = None if dropout is None else {DROPOUT: dropout}
    with nn.intercept_methods(_rows_stay(batch_sharding(mesh))):
        known = {"params": _whole_tables(params, mesh), **(variables or {})}
        return model.apply(known, *inputs, method=stage, rngs=rngs, mutable=list(mutable) or False)


def _rows_stay(rows: NamedSharding) -> Callable[..., Any]:
    stay = partial(jax.lax.with_sharding_constraint, shardings=rows)

    def interceptor(method: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        if isinstance(context.module, nn.Dense) and context.method_name == "__call__":
            return stay(method(*map(stay, args), **kwargs))
        if isinstance(context.module, Dropout) and context.method_name == "kept":
            return stay(method(*args, **kwargs))
        return method(*args, **kwargs)

    return interceptor


def _whole_tables(params: Any, mesh: Mesh) -> Any:
    def gather(path: Sequence[Any], leaf: jax.Array) -> jax.Array:
        is_table = path_end(TABLE).search(path_name(path))
        return everywhere(leaf, mesh) if is_table else leaf

    return jax.tree_util.tree_map_with_path(gather, params)


def rows_of_all_devices(values: jax.Array, index: jax.Array, mesh: Mesh) -> jax.Array:
    """`values[index]` where both are split by rows, without the whole of `values` on any device.

    Indexing would have XLA gather all rows on every device. Instead an all-to-all gives each device its part of every
    row's columns, in which it finds all that anyone asks for, and another one puts the parts of each found row
    together. Each time a device sends and receives as much as it has rows, and holds no more, whatever the number of
    devices and whoever asks for what; so it is, backwards, with the gradients (our decision).

    At most `EXCHANGED_BYTES` of a device go at a time, or one column. Every piece gives each device equally many
    columns; otherwise XLA first moves columns to neighbours.

    Args:
        values: [b ...], any dtype.
        index: int [b], rows of the global batch.
        mesh: the devices.

    Returns:
        [b ...], split by rows.
    """
    placed, by_rows = jax.lax.with_sharding_constraint, batch_sharding(mesh)
    by_columns = NamedSharding(mesh, PartitionSpec(None, (DATA, FSDP)))
    index = everywhere(index, mesh)

    def found(columns: jax.Array) -> jax.Array:
        # By rows until here: slicing columns that are split would move them.
        parts = placed(placed(columns, by_rows), by_columns)
        return placed(placed(parts[index], by_columns), by_rows)

    rows, width = len(values), math.prod(values.shape[1:])
    columns = placed(jnp.pad(values.reshape(rows, width), ((0, 0), (0, -width % mesh.size))), by_rows)
    of_device, most = columns.shape[1] // mesh.size, max(1, EXCHANGED_BYTES // (rows * columns.dtype.itemsize))
    each = -(-of_device // -(-of_device // most)) * mesh.size  # as few pieces as possible, of much the same size
    pieces = [found(columns[:, at : at + each]) for at in range(0, columns.shape[1], each)]
    return jnp.concatenate(pieces, axis=1)[:, :width].reshape(values.shape)


def in_micro_batches(part: Callable[..., Any], count: int, mesh: Mesh, inputs: Any, *, recompute: bool = True) -> Any:
    """`part(0, inputs)` of a whole batch, computed for one micro batch after the other, and each again backwards.

    So only one micro batch's intermediate results exist at a time, and gradients are those of the whole batch.
    Micro batch i holds the pairs i, i + count, i + 2 count and so on: some of every device's own, so none travels.

    Args:
        part: `(i, rows) -> rows`; what it makes of a row must not depend on the others.
        count: of micro batches, which divides every device's pairs; 1 leaves everything as it is.
        mesh: the devices.
        inputs: a tree of arrays whose leading axis is the number of pairs b at least once, and otherwise a multiple of
            it, with all rows of a pair side by side; so are those of the result.
        recompute: whether the backward pass computes each part again; False where the part itself keeps little for it.
    """
    if count == 1:
        return part(0, inputs)
    pairs = min(len(rows) for rows in jax.tree.leaves(inputs))
    in_turn = NamedSharding(mesh, PartitionSpec(None, (DATA, FSDP)))

    def split(rows: jax.Array) -> jax.Array:  # [kb ...] -> [count kb/count ...]
        by_pair = rows.reshape(pairs // count, count, len(rows) // pairs, *rows.shape[1:])
        parts = by_pair.swapaxes(0, 1).reshape(count, len(rows) // count, *rows.shape[1:])
        return jax.lax.with_sharding_constraint(parts, in_turn)

    def merged(parts: jax.Array) -> jax.Array:  # and back
        rows = parts.shape[1] * count
        by_pair = parts.reshape(count, pairs // count, rows // pairs, *parts.shape[2:])
        return jax.lax.with_sharding_constraint(
            by_pair.swapaxes(0, 1).reshape(rows, *parts.shape[2:]), batch_sharding(mesh)
        )

    # A scan never finds what it has computed before.
    one = jax.checkpoint(part, prevent_cse=False) if recompute else part
    step = lambda _, numbered: (None, one(*numbered))  # noqa: E731
    _, parts = jax.lax.scan(step, None, (jnp.arange(count), jax.tree.map(split, inputs)))
    return jax.tree.map(merged, parts)


def path_name(path: Sequence[Any]) -> str:
    """A leaf's path as text: "params/text_encoder/layers/mlp/up/kernel"."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def state_shardings(state: Any, mesh: Mesh) -> Any:
    """The sharding of every leaf of a (possibly abstract) train state, by the first rule that matches its path.

    An axis that its mesh axis does not divide stays whole.
    """

    def place(path: Sequence[Any], leaf: Any) -> NamedSharding:
        name = path_name(path)
        spec = next(spec for pattern, spec in RULES if path_end(pattern).search(name))
        fits = [axis if axis is None or leaf.shape[i] % mesh.shape[axis] == 0 else None for i, axis in enumerate(spec)]
        return NamedSharding(mesh, PartitionSpec(*fits))

    return jax.tree_util.tree_map_with_path(place, state)


def global_batch(mesh: Mesh, rows: Mapping[str, np.ndarray]) -> Batch:
    """Makes a global Batch of the rows that this process read; keys that are no fields of a Batch are ignored."""
    sharding = batch_sharding(mesh)
    own = {name: rows[name] for name in Batch.__dataclass_fields__ if name in rows}
    return Batch(**{name: jax.make_array_from_process_local_data(sharding, values) for name, values in own.items()})
