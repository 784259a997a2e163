"""An optimised program is read: its loops multiply out, its fusions are entered, its stacks have names."""

import jax
import jax.numpy as jnp
from small_programs import HEADER, NESTED, PRODUCTS, TPU

from r2d2_jax.planning.hlo import Shape, parse, shapes
from r2d2_jax.planning.work import operations


def test_a_loop_within_a_loop_multiplies() -> None:
    program = parse(NESTED)
    assert (program.entry, program.partitions) == ("main", 8)
    assert program.times["outer_body"] == 3
    assert program.times["inner_body"] == program.times["inner_condition"] == 15
    assert program.times["add"] == 0  # what a reduction does to single numbers is no run of its own
    assert program.unknown_loops() == []


def test_a_loop_of_unknown_length_counts_once_and_is_named() -> None:
    text = NESTED.replace('backend_config={"known_trip_count":{"n":"3"}}', 'metadata={op_name="jit(step)/draw/while"}')
    program = parse(text)
    assert program.times["inner_body"] == 5
    assert program.unknown_loops() == ["jit(step)/draw/while"]


def test_the_length_of_a_loop_that_only_its_condition_tells() -> None:
    """From two to twelve; unknown where it begins elsewhere, or ends otherwise."""
    assert parse(TPU).times["body"] == 10
    for known, unknown in (("constant(2)", "custom-call()"), ("direction=LT", "direction=NE")):
        program = parse(TPU.replace(known, unknown))
        assert (program.times["body"], program.unknown_loops()) == (1, ["loop"])


def test_what_is_within_a_fusion_is_not_executed_by_itself() -> None:
    program = parse(PRODUCTS)
    assert program.fused == {"product", "stacked"}
    alone = {instruction.name for _, instruction, _ in program.executed(fused=False)}
    inside = {instruction.name for _, instruction, _ in program.executed(fused=True)} - alone
    assert "fused" in alone
    assert {"rows_kernel", "update"} <= inside


def test_both_branches_of_a_conditional_run() -> None:
    branches = "".join(
        f"%{name} (p: f32[2]) -> f32[2] {{\n  ROOT %p = f32[2]{{0}} parameter(0)\n}}\n\n" for name in ("left", "right")
    )
    entry = "  ROOT %c = f32[2]{0} conditional(%i, %x, %x), branch_computations={%left, %right}\n"
    text = f"{HEADER}\n{branches}ENTRY %main (i: s32[], x: f32[2]) -> f32[2] {{\n{entry}}}\n"
    assert parse(text).times == {"main": 1, "left": 1, "right": 1}


def test_an_instruction_knows_the_functions_that_it_comes_from() -> None:
    program = parse(NESTED)
    sent = program.computations["main"].instructions["sent"]
    assert program.stack(sent) == ("rows_of_all_devices", "with_negatives", "train_step")
    assert sent.op_name == "jit(step)/jvp()/sharding_constraint"
    assert program.stack(program.computations["main"].instructions["x"]) == ()


def test_the_stack_where_parents_are_printed_by_their_own_number() -> None:
    text = NESTED.replace("parent_frame_id=1}", "}").replace("parent_frame_id=2}", "parent_frame_id=1}")
    program = parse(text.replace("parent_frame_id=3}", "parent_frame_id=2}"))
    sent = program.computations["main"].instructions["sent"]
    assert program.stack(sent) == ("rows_of_all_devices", "with_negatives", "train_step")


def test_types_of_tuples_layouts_and_dynamic_sizes() -> None:
    found = shapes("(bf16[2,<=3]{1,0:T(8,128)(2,1)S(1)}, /*index=1*/pred[], token[], s4[6]{0}, f8e4m3fn[5]{0})")
    assert [(each.dtype, each.dims, each.space, each.bytes) for each in found] == [
        ("bf16", (2, 3), 1, 12),
        ("pred", (), 0, 1),
        ("token", (), 0, 0),
        ("s4", (6,), 0, 3),
        ("f8e4m3fn", (5,), 0, 5),
    ]
    assert str(found[0]) == "bf16[2,3]"


def test_tiles_pad_the_two_fastest_axes() -> None:
    """257 numbers in rows of 128 are 384, 12 of them in tiles of 8 are 16; the fastest axis here is the first."""
    assert Shape("f32", (257, 2, 12), "0,2,1:T(8,128)").stored == 4 * 384 * 16 * 2
    assert Shape("f32", (3, 5), "1,0").stored == Shape("f32", (3, 5)).stored == 60


def test_a_really_compiled_scan_of_scans() -> None:
    """Seven times three products of [8 16] and [16 16]."""

    def layer(rows: jax.Array, kernel: jax.Array) -> tuple[jax.Array, None]:
        return jax.lax.scan(lambda rows, _: (jnp.tanh(rows @ kernel), None), rows, None, length=3)[0], None

    stacked = jax.ShapeDtypeStruct((7, 16, 16), "float32")
    rows = jax.ShapeDtypeStruct((8, 16), "float32")
    compiled = jax.jit(lambda rows, kernels: jax.lax.scan(layer, rows, kernels)[0]).lower(rows, stacked).compile()
    made = operations(parse(compiled.as_text()))
    assert sum(each.times * (each.products + each.exact_products) for each in made) == 7 * 3 * 8 * 16 * 16
