"""Products and memory traffic of a program, against numbers worked out by hand."""

import pytest
from small_programs import HEADER, NESTED, PRODUCTS, TPU

from r2d2_jax.planning.hlo import parse
from r2d2_jax.planning.work import operations, uncounted_calls

BF16, F32 = 2, 4


def made_by(text: str, kind: str) -> list[float]:
    return sorted(value for each in operations(parse(text)) if (value := getattr(each, kind)))


def test_products_of_fusions_convolutions_and_library_calls() -> None:
    """[10 64] x [64 32] in a fusion; two images of 2 x 2 patches, 4 x 4 x 3 to 5; cuBLAS's six of [7 9] x [9 5]."""
    assert made_by(PRODUCTS, "products") == [6 * 7 * 9 * 5, 2 * 4 * 48 * 5, 10 * 64 * 32]


def test_a_batch_axis_that_is_written_as_a_convolution_with_holes() -> None:
    """Of 6 x 6 kernel positions one each falls on a number: six products of [7 9] and [9 5], exact float32 here."""
    assert made_by(PRODUCTS, "exact_products") == [6 * 7 * 9 * 5]


def test_of_a_stack_of_layers_only_one_is_read_and_written() -> None:
    by_name = {each.op_name: each for each in operations(parse(PRODUCTS)) if each.op_name}
    number = 4  # the layer's, in a fusion's operands
    assert by_name["jit(step)/mlp"].bytes == BF16 * (64 * 32 + 10 * 64 + 10 * 32) + number
    (root,) = [each for each in operations(parse(PRODUCTS)) if each.bytes == 2 * BF16 * 10 * 32 + number]
    assert root.products == 0


def test_a_copy_to_a_memory_on_the_chip_only_reads() -> None:
    alone = PRODUCTS.replace("%near = f32[6,7,9]{2,1,0:T(8,128)S(1)}", "%near = f32[6,7,9]{2,1,0}")
    moved = [sum(each.bytes for each in operations(parse(text))) for text in (PRODUCTS, alone)]
    assert moved[1] - moved[0] == F32 * 6 * 7 * 9


def test_what_is_begun_and_awaited_moves_once() -> None:
    """The gathered rows are written; as many are read where they come from."""
    gathers = [each for each in operations(parse(NESTED)) if each.times == 15]
    assert [each.bytes for each in gathers] == [2 * F32 * 8 * 16]


def test_slices_and_updates_move_what_they_touch() -> None:
    lines = """
ENTRY %main (x: f32[100,8], i: s32[], u: f32[1,8]) -> f32[100,8] {
  %x = f32[100,8]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %u = f32[1,8]{1,0} parameter(2)
  %slice = f32[3,8]{1,0} dynamic-slice(%x, %i, %i), dynamic_slice_sizes={3,8}
  ROOT %update = f32[100,8]{1,0} dynamic-update-slice(%x, %u, %i, %i)
}
"""
    assert made_by(HEADER + lines, "bytes") == [2 * F32 * 8, 2 * F32 * 24]


@pytest.mark.parametrize(("source", "result", "times"), [("", ":S(1)", 1), (":S(1)", "", 1), ("", "", 2)])
def test_a_slice_that_is_begun_and_awaited_moves_once(source: str, result: str, times: int) -> None:
    """In its short form and in the long one, between the large memory and one on the chip, and within the large one."""
    whole, part = f"f32[100,8]{{1,0{source}}}", f"f32[3,8]{{1,0{result}}}"
    long = f"""
%slicing (y: f32[100,8]) -> f32[3,8] {{
  %y = {whole} parameter(0)
  ROOT %part = {part} slice(%y), slice={{[0:3], [0:8]}}
}}

ENTRY %main (x: f32[100,8]) -> f32[3,8] {{
  %x = {whole} parameter(0)
  %begun = (({whole}), {part}, s32[]{{:S(2)}}) async-start(%x), calls=%slicing
  ROOT %done = {part} async-done(%begun)
}}
"""
    short = f"""
ENTRY %main (x: f32[100,8]) -> f32[3,8] {{
  %x = {whole} parameter(0)
  %begun = (({whole}), {part}, s32[]{{:S(2)}}) slice-start(%x), slice={{[0:3], [0:8]}}
  ROOT %done = {part} slice-done(%begun)
}}
"""
    assert made_by(HEADER + long, "bytes") == made_by(HEADER + short, "bytes") == [times * F32 * 24]


def test_a_fusion_reads_the_slice_alone() -> None:
    lines = """
%fused (y: f32[100,8]) -> f32[3,8] {
  %y = f32[100,8]{1,0} parameter(0)
  %part = f32[3,8]{1,0} slice(%y), slice={[0:3], [0:8]}
  ROOT %negated = f32[3,8]{1,0} negate(%part)
}

ENTRY %main (x: f32[100,8]) -> f32[3,8] {
  %x = f32[100,8]{1,0} parameter(0)
  ROOT %made = f32[3,8]{1,0} fusion(%x), kind=kLoop, calls=%fused
}
"""
    assert made_by(HEADER + lines, "bytes") == [2 * F32 * 24]


def test_a_collective_that_goes_on_beside_others_moves_once() -> None:
    """Where it begins it reads what the chip has, and writes both; what goes on beside it and awaits it does not."""
    own, gathered = BF16 * 2 * 16, BF16 * 8 * 16
    fusions = [each for each in operations(parse(TPU)) if each.name in ("started", "busy", "awaited")]
    assert [(each.name, each.bytes) for each in fusions] == [
        ("started", own + own + gathered),
        ("busy", 2 * own),
    ]


def test_what_a_fusion_hands_on_is_not_moved() -> None:
    lines = """
%fused (y: f32[100,8], z: f32[3,8]) -> (f32[100,8], f32[3,8]) {
  %y = f32[100,8]{1,0} parameter(0)
  %z = f32[3,8]{1,0} parameter(1)
  %negated = f32[3,8]{1,0} negate(%z)
  ROOT %both = (f32[100,8]{1,0}, f32[3,8]{1,0}) tuple(%y, %negated)
}

ENTRY %main (x: f32[100,8], u: f32[3,8]) -> (f32[100,8], f32[3,8]) {
  %x = f32[100,8]{1,0} parameter(0)
  %u = f32[3,8]{1,0} parameter(1)
  ROOT %made = (f32[100,8]{1,0}, f32[3,8]{1,0}) fusion(%x, %u), kind=kLoop, calls=%fused
}
"""
    assert made_by(HEADER + lines, "bytes") == [2 * F32 * 24]


def test_calls_that_name_what_is_there_move_nothing() -> None:
    lines = """
ENTRY %main () -> f32[6,8] {
  %one = f32[3,8]{1,0} custom-call(), custom_call_target="AllocateBuffer"
  ROOT %joined = f32[6,8]{1,0} custom-call(%one, %one), custom_call_target="ConcatBitcast"
}
"""
    assert made_by(HEADER + lines, "bytes") == []


def test_calls_that_cannot_be_read_are_named() -> None:
    assert uncounted_calls(parse(PRODUCTS)) == {"__cudnn$fmhaSoftmax": 1}
