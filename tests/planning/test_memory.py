"""Memory of a step: the state by its parts, and what temporaries there are at the worst moment."""

import jax
from small_model import QUEUE_LENGTH, VARIANTS, small_config, small_plan
from small_programs import LIFETIMES

from r2d2_jax.planning.estimate import MACHINE_CODE, too_much
from r2d2_jax.planning.hlo import parse
from r2d2_jax.planning.memory import Temporary, largest_temporaries, readable, state_parts
from r2d2_jax.train.state import abstract_state

F32 = 4


def test_the_state_by_its_parts() -> None:
    plan = small_plan(small_config(VARIANTS["full"]))
    parts = state_parts(plan)
    state = abstract_state(plan.task, plan.optimizer, plan.mesh)
    count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))  # noqa: E731
    assert parts["parameters"] == F32 * count(state.params)
    assert parts["teacher"] == F32 * count(state.memory.teacher)
    assert parts["queue"] > F32 * 2 * QUEUE_LENGTH * 16  # both embeddings, and ids, ages and marks beside them
    assert parts["batch"] == 8 * (16 * 16 * 3 + 10 * (4 + 1) + 8)  # pixels, tokens and their mask, identity
    assert list(parts)[:3] == ["parameters", "optimizer moments", "teacher"]


def test_arrays_live_from_where_they_are_made_to_where_they_are_last_read() -> None:
    """The widest moment is within the loop: the row, the wide one that it carries, and its first sum.

    Results lie where the caller has room; what is in a memory on the chip itself does not count.
    """
    found = largest_temporaries(parse(LIFETIMES))
    assert found == [
        Temporary("wide", "f32[100]", F32 * 100, 1),
        Temporary("backward of rank/mlp/add", "f32[100]", F32 * 100, 1),
        Temporary("row", "f32[10]", F32 * 10, 1),
    ]


def test_what_xla_makes_itself_is_named_by_the_loop_that_carries_it() -> None:
    """As the room for what each turn keeps for the backward pass."""
    unnamed = LIFETIMES.replace(', metadata={op_name="jit(step)/jvp()/wide"}', "")
    text = unnamed.replace("body=%body,", 'body=%body, metadata={op_name="jit(step)/jvp(R2D2.rank)/layers/while"},')
    assert largest_temporaries(parse(text))[-2].name == "backward of rank/mlp/add"
    assert largest_temporaries(parse(text))[0].name == "carried through rank/layers/while"
    assert largest_temporaries(parse(text.replace(" while(%start)", " call(%start)")))[0].name == "broadcast"


def test_names_without_what_every_one_has() -> None:
    long = (
        "jit(<lambda>)/transpose(jvp(R2D2.encode_text))/text_encoder/while/body/closed_call/checkpoint/layers/mlp/mul"
    )
    assert readable(long) == "backward of encode_text/text_encoder/layers/mlp/mul"
    triples = "jit(step)/jvp(R2D2.rank)/text_image_encoder.triples/text_image_encoder._stack/CrossLayer._read/mlp/erfc"
    assert readable(triples) == "rank/text_image_encoder/mlp/erfc"
    assert readable("jit(step)/jvp()/jit(draw)/while") == "jit(draw)/while"
    assert readable("") == ""


def test_what_a_compiler_says_where_memory_ends() -> None:
    message = """RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. \
Used 18.60G of 15.75G hbm. Exceeded hbm capacity by 2.85G.

  Largest program allocations in hbm:

  1. Size: 1.50G
     Operator: op_name="jit(step)/transpose(jvp(R2D2.rank))/image_text_encoder/mlp/up/dot_general"
     Shape: bf16[24,32,257,1024]{3,2,1,0:T(8,128)(2,1)}
     Unpadded size: 1.49G

  2. Size: 768.00M
     Shape: f32[5]{0}
"""
    short = "the total memory required for HLO temporaries (18.60G) exceeds available HBM (15.75G)."
    usage, again = too_much(message, {"parameters": 5}), too_much(short, {"parameters": 5})
    assert usage is not None
    assert again is not None
    # The short one is of temporaries alone.
    assert again.needed == usage.needed + 5 + MACHINE_CODE
    assert (again.kept, again.temporaries, again.code) == (5, usage.needed, MACHINE_CODE)
    assert not usage.fits
    assert not again.fits
    assert (usage.needed, usage.limit) == (18.6 * 2**30, 15.75 * 2**30)
    assert usage.largest == [
        Temporary("backward of rank/image_text_encoder/mlp/up/dot_general", "bf16[24,32,257,1024]", 1.5 * 2**30, 1),
        Temporary("", "f32[5]", 768 * 2**20, 1),
    ]


def test_other_failures_of_a_compiler_are_not_taken_for_it() -> None:
    said = (
        "RESOURCE_EXHAUSTED: E1001: CompileTimeScopedVmemOom:\nRan out of memory in memory space vmem while allocating "
        "on stack for %gather. Scoped allocation with size 16.12M and limit 16.00M exceeded scoped vmem limit by 128K."
    )
    assert too_much(said, {}) is None
