"""Collectives: which, how often, how many bytes, and for which part of the method."""

import pytest
from small_programs import NESTED, SLICES, TPU

from r2d2_jax.planning.hlo import parse
from r2d2_jax.planning.traffic import (
    CONTRASTIVE,
    GATHERS,
    GRADIENTS,
    HARD_NEGATIVES,
    OTHER,
    Collective,
    _group,
    _origin,
    _slices,
    collectives,
)

F32 = 4


def test_every_collective_counts_once_with_its_loops() -> None:
    """One that is begun and awaited has the bytes of its result; a tuple those of all its parts."""
    found = {each.kind: each for each in collectives(parse(NESTED))}
    assert len(found) == len(collectives(parse(NESTED))) == 3
    gather, reduce, exchange = (found[kind] for kind in ("all-gather", "all-reduce", "all-to-all"))
    assert (gather.times, gather.group, gather.bytes, gather.origin) == (15, 4, F32 * 8 * 16, GATHERS)
    assert (reduce.times, reduce.group, reduce.bytes, reduce.origin) == (1, 2, F32 * 13, GRADIENTS)
    assert (exchange.times, exchange.group, exchange.bytes, exchange.origin) == (1, 4, F32 * 12, HARD_NEGATIVES)


def test_collectives_of_tpus_that_several_fusions_repeat() -> None:
    """The gather counts where it is begun; the sum of which a slice is kept is a reduce-scatter."""
    gather, scatter = collectives(parse(TPU))
    bf16 = 2
    assert (gather.kind, gather.times, gather.bytes, gather.origin) == ("all-gather", 10, bf16 * 8 * 16, GATHERS)
    assert (scatter.kind, scatter.times, scatter.group) == ("reduce-scatter", 10, 4)
    assert (scatter.bytes, scatter.sent, scatter.origin) == (bf16 * 2 * 16, bf16 * 6 * 16, GRADIENTS)


def test_what_a_host_takes_to_other_slices() -> None:
    """Its origin is what was sent, also that of the gather within the slice of a sum that came back."""
    gather, reduce, exchange, one, within = collectives(parse(SLICES))
    assert [each.kind.removesuffix(" between slices") for each in (gather, reduce, exchange, one)] == [
        "all-gather",
        "all-reduce",
        "all-to-all",
        "collective-permute",
    ]
    assert [each.group for each in (gather, reduce, exchange, one)] == [4, 4, 2, 2]
    whole = F32 * 8
    assert [each.sent for each in (gather, reduce, exchange, one)] == [3 * whole, 1.5 * whole, whole / 2, whole]
    assert [reduce.origin, exchange.origin] == [GRADIENTS, HARD_NEGATIVES]
    assert "encode_text" in gather.op_name
    assert (within.kind, within.group, within.origin) == ("all-gather", 4, GRADIENTS)


@pytest.mark.parametrize(
    ("target", "slices"),
    [('"{1,2,3}x{0:255}"', 3), ("{{100000,200000},{300000,400000}}", 2), ("{{100000->200000},{200000->100000}}", 2)],
)
def test_how_many_slices_take_part(target: str, slices: int) -> None:
    """Of several groups those of the first."""
    instruction = next(iter(parse(NESTED).computations["main"].instructions.values()))
    attributes = f'frontend_attributes={{_xla_megascale_target={target},_xla_megascale_transfer_type="ALL_TO_ALL"}}'
    assert _slices(type(instruction)("x", "f32[]", "send", (), attributes)) == slices


def test_a_gather_of_an_argument_of_the_step_gathers_parameters() -> None:
    assert _origin("all-gather", "state.params['text_encoder']['word_embedding']", ()) == GATHERS


@pytest.mark.parametrize(
    ("kind", "sent"),
    [
        ("all-gather", 75),  # all but its own quarter
        ("all-to-all", 75),
        ("ragged-all-to-all", 75),
        ("all-reduce", 150),  # once to add up, once to spread
        ("reduce-scatter", 300),  # its result is a quarter of what is added
        ("collective-permute", 100),
    ],
)
def test_what_a_ring_of_four_sends_for_a_result_of_a_hundred_bytes(kind: str, sent: float) -> None:
    assert Collective(kind, 1, 4, 100.0, OTHER, "").sent == sent


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("replica_groups={{0,2,4,6},{1,3,5,7}}, to_apply=%add", 4),
        ("replica_groups=[4,2]<=[8]", 2),
        ("replica_groups=[2,4]<=[4,2]T(1,0), use_global_device_ids=true", 4),
        (
            "replica_groups=mesh['axis_0'=4,'axis_1'=1,'axis_2'=2], device_ids=([2,4]T(1,0)) {'axis_0'}, use_ids=true",
            4,
        ),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0','axis_1'}, metadata={op_name=\"a\"}", 8),
        ("replica_groups=mesh['axis_0'=8] {'axis_0':(2)4}", 4),
        ("replica_groups={}", 8),
        ("channel_id=3", 8),
    ],
)
def test_how_many_chips_take_part(groups: str, size: int) -> None:
    instruction = next(iter(parse(NESTED).computations["main"].instructions.values()))
    assert _group(type(instruction)("x", "f32[]", "all-gather", (), groups), 8) == size


@pytest.mark.parametrize(
    ("kind", "op_name", "function", "origin"),
    [
        ("all-gather", "jit(step)/jvp(R2D2.encode_text)/mul", "unit_norm", CONTRASTIVE),
        ("all-reduce", "jit(step)/transpose(jvp())/dot_general", "Pretraining._target_guided", CONTRASTIVE),
        ("all-gather", "jit(step)/jvp()/sharding_constraint", "_whole_tables.<locals>.gather", GATHERS),
        ("all-gather", "jit(step)/jvp(R2D2.rank)/dot_general", "product_of_rows", GATHERS),
        ("reduce-scatter", "jit(step)/transpose(jvp(R2D2.rank))/dot_general", "product_of_rows", GRADIENTS),
        ("all-reduce", "jit(step)/reduce_sum", "tree_sum", OTHER),
        ("all-gather", "jit(step)/jvp()/top_k", "mask_tokens", OTHER),
        ("ragged-all-to-all", "", "", HARD_NEGATIVES),
    ],
)
def test_which_part_of_the_method_asks(kind: str, op_name: str, function: str, origin: str) -> None:
    assert _origin(kind, op_name, (function, "train_step")) == origin
