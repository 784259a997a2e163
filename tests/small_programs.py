"""Optimised HLO texts written by hand, in the forms that XLA prints."""
# ruff: noqa: E501

HEADER = "HloModule jit_step, is_scheduled=true, num_partitions=8\n"

# A loop of three turns around one of five; a gather that is begun and awaited in the inner one.
NESTED = (
    HEADER
    + """
FileNames
1 "tasks.py"

FunctionNames
1 "train_step"
2 "with_negatives"
3 "rows_of_all_devices"

FileLocations
1 {file_name_id=1 function_name_id=1 line=3 end_line=3 column=1 end_column=2}
2 {file_name_id=1 function_name_id=2 line=7 end_line=7 column=1 end_column=2}
3 {file_name_id=1 function_name_id=3 line=9 end_line=9 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=3}

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%inner_condition (p: (s32[], f32[8,16], f32[2,16])) -> pred[] {
  %p = (s32[], f32[8,16]{1,0}, f32[2,16]{1,0}) parameter(0)
  ROOT %yes = pred[] constant(true)
}

%inner_body (p.1: (s32[], f32[8,16], f32[2,16])) -> (s32[], f32[8,16], f32[2,16]) {
  %p.1 = (s32[], f32[8,16]{1,0}, /*index=2*/f32[2,16]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p.1), index=0
  %part = f32[2,16]{1,0} get-tuple-element(%p.1), index=2
  %gather-start = (f32[2,16]{1,0}, f32[8,16]{1,0}) all-gather-start(%part), channel_id=1, replica_groups=[2,4]<=[8], dimensions={0}, use_global_device_ids=true, metadata={op_name="jit(step)/jvp(R2D2.rank)/mlp/up/dot_general" stack_frame_id=1}
  %gather-done = f32[8,16]{1,0} all-gather-done(%gather-start)
  ROOT %next = (s32[], f32[8,16]{1,0}, f32[2,16]{1,0}) tuple(%i, %gather-done, %part)
}

%outer_condition (p.2: (s32[], f32[8,16], f32[2,16])) -> pred[] {
  %p.2 = (s32[], f32[8,16]{1,0}, f32[2,16]{1,0}) parameter(0)
  ROOT %yes.1 = pred[] constant(true)
}

%outer_body (p.3: (s32[], f32[8,16], f32[2,16])) -> (s32[], f32[8,16], f32[2,16]) {
  %p.3 = (s32[], f32[8,16]{1,0}, f32[2,16]{1,0}) parameter(0)
  ROOT %inner = (s32[], f32[8,16]{1,0}, f32[2,16]{1,0}) while(%p.3), condition=%inner_condition, body=%inner_body, backend_config={"known_trip_count":{"n":"5"},"known_init_step":{"init":"0","step":"1"}}
}

ENTRY %main (x: f32[2,16], y: f32[4,3]) -> (f32[8,16], f32[4,3], f32[]) {
  %x = f32[2,16]{1,0} parameter(0)
  %y = f32[4,3]{1,0} parameter(1)
  %zero = s32[] constant(0)
  %room = f32[8,16]{1,0} custom-call(), custom_call_target="AllocateBuffer"
  %start = (s32[], f32[8,16]{1,0}, f32[2,16]{1,0}) tuple(%zero, %room, %x)
  %outer = (s32[], f32[8,16]{1,0}, f32[2,16]{1,0}) while(%start), condition=%outer_condition, body=%outer_body, backend_config={"known_trip_count":{"n":"3"}}
  %sums = (f32[4,3]{1,0}, f32[]) all-reduce(%y, %zero), channel_id=2, replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add, metadata={op_name="jit(step)/transpose(jvp(R2D2.rank))/mlp/up/dot_general" stack_frame_id=1}
  %sent = (f32[1,3]{1,0}, f32[1,3]{1,0}, f32[1,3]{1,0}, f32[1,3]{1,0}) all-to-all(%y, %y, %y, %y), channel_id=3, replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, metadata={op_name="jit(step)/jvp()/sharding_constraint" stack_frame_id=3}
  %made = f32[8,16]{1,0} get-tuple-element(%outer), index=1
  %first = f32[4,3]{1,0} get-tuple-element(%sums), index=0
  %second = f32[] get-tuple-element(%sums), index=1
  ROOT %result = (f32[8,16]{1,0}, f32[4,3]{1,0}, f32[]) tuple(%made, %first, %second)
}
"""
)

# A kernel of one layer of 24, read within a fusion; a result written into a stack of them; products of all kinds.
PRODUCTS = (
    HEADER
    + """
%product (stack: bf16[24,64,32], number: s32[], rows: bf16[10,64]) -> bf16[10,32] {
  %stack = bf16[24,64,32]{2,1,0} parameter(0)
  %number = s32[] parameter(1)
  %rows = bf16[10,64]{1,0} parameter(2)
  %none = s32[] constant(0)
  %slice = bf16[1,64,32]{2,1,0} dynamic-slice(%stack, %number, %none, %none), dynamic_slice_sizes={1,64,32}
  %kernel = bf16[64,32]{1,0} bitcast(%slice)
  ROOT %rows_kernel = bf16[10,32]{1,0} dot(%rows, %kernel), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%stacked (kept: bf16[24,10,32], at: s32[], new: bf16[10,32]) -> bf16[24,10,32] {
  %kept = bf16[24,10,32]{2,1,0} parameter(0)
  %at = s32[] parameter(1)
  %new = bf16[10,32]{1,0} parameter(2)
  %none.1 = s32[] constant(0)
  %one = bf16[1,10,32]{2,1,0} bitcast(%new)
  ROOT %update = bf16[24,10,32]{2,1,0} dynamic-update-slice(%kept, %one, %at, %none.1, %none.1)
}

ENTRY %main (stack.1: bf16[24,64,32], kept.1: bf16[24,10,32], number.1: s32[], rows.1: bf16[10,64], image: f32[2,8,8,3], patch: f32[4,4,3,5], query: f32[6,7,9], key: f32[6,9,5]) -> bf16[24,10,32] {
  %stack.1 = bf16[24,64,32]{2,1,0} parameter(0)
  %kept.1 = bf16[24,10,32]{2,1,0} parameter(1)
  %number.1 = s32[] parameter(2)
  %rows.1 = bf16[10,64]{1,0} parameter(3)
  %image = f32[2,8,8,3]{3,2,1,0} parameter(4)
  %patch = f32[4,4,3,5]{3,2,1,0} parameter(5)
  %query = f32[6,7,9]{2,1,0} parameter(6)
  %key = f32[6,9,5]{2,1,0} parameter(7)
  %fused = bf16[10,32]{1,0} fusion(%stack.1, %number.1, %rows.1), kind=kOutput, calls=%product, metadata={op_name="jit(step)/mlp"}
  %patches = f32[2,2,2,5]{3,2,1,0} convolution(%image, %patch), window={size=4x4 stride=4x4}, dim_labels=b01f_01io->b01f
  %batched = f32[6,7,5]{2,1,0} convolution(%query, %key), window={size=6 stride=5 pad=0_0 lhs_dilate=6}, dim_labels=0bf_0io->0bf, operand_precision={highest,highest}
  %gemm = (f32[6,7,5]{2,1,0}, s8[64]{0}) custom-call(%query, %key), custom_call_target="__cublas$gemm", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["2"],"rhs_contracting_dimensions":["1"],"lhs_batch_dimensions":["0"],"rhs_batch_dimensions":["0"]}}}
  %chosen = (f32[4]{0}, s32[4]{0}) custom-call(%query), custom_call_target="TopK"
  %attended = (f32[4]{0}, u8[4]{0}) custom-call(%query), custom_call_target="__cudnn$fmhaSoftmax"
  %near = f32[6,7,9]{2,1,0:T(8,128)S(1)} copy(%query)
  ROOT %result = bf16[24,10,32]{2,1,0} fusion(%kept.1, %number.1, %fused), kind=kLoop, calls=%stacked
}
"""
)

# As TPUs write it: a loop whose length only its condition tells; a gather that one fusion begins, another does its
# products meanwhile, and a third awaits; a sum of which each chip keeps a slice.
TPU = (
    HEADER
    + """
%begin (a: bf16[2,16]) -> (bf16[2,16], bf16[8,16]) {
  %a = bf16[2,16]{1,0} parameter(0)
  %gather.1 = bf16[8,16]{1,0} all-gather(%a), channel_id=7, replica_groups=[2,4]<=[8], dimensions={0}
  ROOT %begun = (bf16[2,16]{1,0}, bf16[8,16]{1,0}) custom-call(%gather.1), custom_call_target="AsyncCollectiveStart"
}

%meanwhile (b: bf16[2,16]) -> bf16[2,16] {
  %b = bf16[2,16]{1,0} parameter(0)
  %gather.2 = bf16[8,16]{1,0} all-gather(%b), channel_id=7, replica_groups=[2,4]<=[8], dimensions={0}
  ROOT %same = bf16[2,16]{1,0} negate(%b)
}

%await (c: bf16[2,16], d: bf16[8,16]) -> bf16[8,16] {
  %c = bf16[2,16]{1,0} parameter(0)
  %d = bf16[8,16]{1,0} parameter(1)
  %gather.3 = bf16[8,16]{1,0} all-gather(%c), channel_id=7, replica_groups=[2,4]<=[8], dimensions={0}
  ROOT %there = bf16[8,16]{1,0} custom-call(%c, %d, %gather.3), custom_call_target="AsyncCollectiveDone"
}

%all-reduce-scatter.1 (e: bf16[8,16]) -> bf16[2,16] {
  %e = bf16[8,16]{1,0} parameter(0)
  %sum = bf16[8,16]{1,0} all-reduce(%e), channel_id=8, replica_groups={{0,1,2,3},{4,5,6,7}}, to_apply=%plus
  %part = u32[] partition-id()
  ROOT %own = bf16[2,16]{1,0} dynamic-slice(%sum, %part, %part), dynamic_slice_sizes={2,16}
}

%condition (p: (s32[], bf16[2,16])) -> pred[] {
  %limit = s32[] constant(12)
  %p = (s32[], bf16[2,16]{1,0}) parameter(0)
  %count = s32[] get-tuple-element(%p), index=0
  ROOT %below = pred[] compare(%count, %limit), direction=LT
}

%body (q: (s32[], bf16[2,16])) -> (s32[], bf16[2,16]) {
  %q = (s32[], bf16[2,16]{1,0}) parameter(0)
  %count.1 = s32[] get-tuple-element(%q), index=0
  %rows = bf16[2,16]{1,0} get-tuple-element(%q), index=1
  %started = (bf16[2,16]{1,0}, bf16[8,16]{1,0}) fusion(%rows), kind=kCustom, calls=%begin, metadata={op_name="jit(step)/jvp(R2D2.rank)/dot_general"}
  %own.1 = bf16[2,16]{1,0} get-tuple-element(%started), index=0
  %all = bf16[8,16]{1,0} get-tuple-element(%started), index=1
  %busy = bf16[2,16]{1,0} fusion(%own.1), kind=kOutput, calls=%meanwhile
  %awaited = bf16[8,16]{1,0} fusion(%own.1, %all), kind=kCustom, calls=%await
  %summed = bf16[2,16]{1,0} fusion(%awaited), kind=kCustom, calls=%all-reduce-scatter.1, metadata={op_name="jit(step)/transpose(jvp(R2D2.rank))/dot_general"}
  ROOT %next = (s32[], bf16[2,16]{1,0}) tuple(%count.1, %summed)
}

ENTRY %main (x: bf16[2,16]) -> (s32[], bf16[2,16]) {
  %x = bf16[2,16]{1,0} parameter(0)
  %two = s32[] constant(2)
  %moved = s32[]{:S(6)} copy(%two)
  %start = (s32[], bf16[2,16]{1,0}) tuple(%moved, %x)
  ROOT %loop = (s32[], bf16[2,16]{1,0}) while(%start), condition=%condition, body=%body
}
"""
)

# Two rows of numbers are there at once, beside the larger one within the loop.
LIFETIMES = (
    HEADER
    + """
%body (p: (f32[100], f32[10])) -> (f32[100], f32[10]) {
  %p = (f32[100]{0}, f32[10]{0}) parameter(0)
  %carried = f32[100]{0} get-tuple-element(%p), index=0
  %short = f32[10]{0} get-tuple-element(%p), index=1
  %twice = f32[100]{0} add(%carried, %carried), metadata={op_name="jit(step)/transpose(jvp(R2D2.rank))/rank/while/body/closed_call/mlp/add"}
  %thrice = f32[100]{0} add(%twice, %carried)
  ROOT %pair = (f32[100]{0}, f32[10]{0}) tuple(%thrice, %short)
}

%condition (p.1: (f32[100], f32[10])) -> pred[] {
  %p.1 = (f32[100]{0}, f32[10]{0}) parameter(0)
  ROOT %yes = pred[] constant(true)
}

ENTRY %main (x: f32[10]) -> f32[10] {
  %x = f32[10]{0} parameter(0)
  %row = f32[10]{0} negate(%x), metadata={op_name="jit(step)/jvp()/row"}
  %gone = f32[1000]{0:T(128)S(1)} broadcast(%x), dimensions={0}
  %wide = f32[100]{0} broadcast(%row), dimensions={0}, metadata={op_name="jit(step)/jvp()/wide"}
  %named = f32[10]{0} bitcast(%row)
  %start = (f32[100]{0}, f32[10]{0}) tuple(%wide, %named)
  %loop = (f32[100]{0}, f32[10]{0}) while(%start), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"4"}}
  %again = f32[10]{0} get-tuple-element(%loop), index=1
  ROOT %result = f32[10]{0} add(%again, %again)
}
"""
)

# Of four slices: a gather and a sum that the host takes to the others, and what each slice makes of what has come.
SLICES = (
    HEADER
    + """
ENTRY %main (x: f32[8], y: f32[8]) -> (f32[32], f32[8]) {
  %x = f32[8]{0} parameter(0)
  %y = f32[8]{0} parameter(1)
  %embed = f32[8]{0} multiply(%x, %x), metadata={op_name="jit(step)/jvp(R2D2.encode_text)/mul" stack_frame_id=1}
  %gradient = f32[8]{0} add(%y, %y), metadata={op_name="jit(step)/transpose(jvp(R2D2.encode_text))/dot_general"}
  %token = token[] after-all()
  %send.1 = (f32[8]{0}, u32[], token[]) send(%embed, %token), channel_id=7, is_host_transfer=true, frontend_attributes={_xla_host_transfer_rendezvous="all-gather.1_0",_xla_megascale_target="{1,2,3,4}x{0:255}",_xla_megascale_transfer_type="ALL_GATHER"}
  %send.2 = (f32[8]{0}, u32[], token[]) send(%gradient, %token), channel_id=9, is_host_transfer=true, frontend_attributes={_xla_host_transfer_rendezvous="all-reduce.1_0",_xla_megascale_target="{1,2,3,4}x{0:255}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %send.3 = (f32[8]{0}, u32[], token[]) send(%embed, %token), channel_id=11, is_host_transfer=true, frontend_attributes={_xla_host_transfer_rendezvous="all-to-all.1_0",_xla_megascale_target={{100000,100001,200000,200001}},_xla_megascale_transfer_type="ALL_TO_ALL"}
  %send.4 = (f32[8]{0}, u32[], token[]) send(%embed, %token), channel_id=13, is_host_transfer=true, frontend_attributes={_xla_host_transfer_rendezvous="collective-permute.1_0",_xla_megascale_target={{100000->200000}},_xla_megascale_transfer_type="ONE_TO_ONE"}
  %recv.2 = (f32[8]{0}, u32[], token[]) recv(%token), channel_id=10, is_host_transfer=true, frontend_attributes={_xla_host_transfer_rendezvous="all-reduce.1_0",_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv-done.2 = (f32[8]{0}, token[]) recv-done(%recv.2), channel_id=10, is_host_transfer=true
  %summed = f32[8]{0} get-tuple-element(%recv-done.2), index=0
  %all = f32[32]{0} all-gather(%summed), channel_id=15, replica_groups=[2,4]<=[8], dimensions={0}
  ROOT %made = (f32[32]{0}, f32[8]{0}) tuple(%all, %summed)
}
"""
)
