"""What fits where: the plan never asks for more than the limit, and the smallest limit is one that is accepted."""

import dataclasses
import re
from typing import Any

import numpy as np
import pytest
from encoder_cases import MODEL
from retrieval_cases import SmallSplit, one_device

from r2d2_jax.encoder import Encoder, Keep
from r2d2_jax.errors import UserError
from r2d2_jax.evaluation import memory
from r2d2_jax.evaluation.memory import Needs, plan_memory, retrieval_needs, smallest_limit

CPU = Needs(
    host={"program": 1000, "embeddings": 200},
    device={"parameters": 500, "forward": 300},
    image=10,
    text=3,
    images=400,
    texts=2000,
    batch_size=8,
    devices=2,
    local_devices=2,
    shared=True,
)
GPU = dataclasses.replace(CPU, shared=False)
MANY_TEXTS = dataclasses.replace(CPU, texts=10**6, text=1, image=1000)


def test_without_a_limit_all_tokens_stay_on_the_devices_or_else_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    assert plan_memory(CPU, None) == memory.Plan(Keep.ON_DEVICES, 400, 2000, whole=True)
    monkeypatch.setattr(memory, "TOKEN_BYTES_PER_DEVICE", CPU.tokens // 2 - 1)
    assert plan_memory(CPU, None) == memory.Plan(Keep.ON_HOST, 400, 2000, whole=True)


@pytest.mark.parametrize("needs", [CPU, GPU, MANY_TEXTS, dataclasses.replace(GPU, devices=4)])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.5, 0.99, 1.0, 1.5])
def test_a_plan_stays_within_its_limit(needs: Needs, share: float) -> None:
    limit = smallest_limit(needs) + int(share * needs.tokens)
    plan = plan_memory(needs, limit)
    tokens = needs.tokens if plan.whole else plan.images * needs.image + plan.texts * needs.text
    host, device = sum(needs.host.values()), sum(needs.device.values())
    of_devices = tokens / needs.devices if plan.keep is Keep.ON_DEVICES else 0
    of_host = tokens if plan.keep is Keep.ON_HOST else 0
    if needs.shared:
        assert host + of_host + needs.local_devices * (device + of_devices) <= limit
    else:
        assert host + of_host <= limit
        assert device + of_devices <= limit
    assert plan.whole or share < 1.0
    if not plan.whole:
        assert plan.images % needs.batch_size == plan.texts % needs.batch_size == 0


def test_what_a_limit_leaves_is_used() -> None:
    """Most of it for images, until all of them are there."""
    for room in (3000, 8000):
        plan = plan_memory(CPU, smallest_limit(CPU) - 8 * 13 + room)
        assert 0.9 * room < plan.images * CPU.image + plan.texts * CPU.text <= room
        assert plan.images * CPU.image > 0.8 * min(room, 400 * CPU.image)


def test_devices_of_their_own_are_limited_on_their_own() -> None:
    """1,200 bytes of host memory and 800 of each device are needed: the two devices have more room than the host."""
    plan = plan_memory(GPU, 1400)
    assert (plan.keep, plan.whole) == (Keep.ON_DEVICES, False)
    assert 2 * 200 < plan.images * GPU.image + plan.texts * GPU.text <= 2 * 600


def test_a_limit_that_is_too_small_is_one_message() -> None:
    least = 1200 + 2 * 800 + 8 * 13
    assert smallest_limit(CPU) == least
    assert not plan_memory(CPU, least).whole
    message = rf"the memory limit is 0.00 GiB \({least - 1} bytes\); expected at least 0.00 GiB \({least} bytes\)"
    with pytest.raises(UserError, match=message) as refused:
        plan_memory(CPU, least - 1)
    named = re.findall(r"[a-z ]+(?= \d\.\d\d[,.])", str(refused.value))
    assert [name.strip() for name in named[-5:]] == [
        "program", "embeddings", "parameters", "forward", "tokens of a batch"
    ]  # fmt: skip
    assert smallest_limit(GPU) == 1200 + 8 * 13


def test_needs_of_a_model_and_a_split() -> None:
    """Tokens by hand; parameters as they lie on the device; the forward as XLA plans it."""
    split: Any = SmallSplit()
    encoder = Encoder(MODEL.module, one_device(), 16)
    params = encoder.placed(MODEL.params)
    needs = retrieval_needs(encoder, MODEL.config, params, split, 100, measured=True)
    assert (needs.image, needs.text) == (10 * 64 * 4, 7 * 64 * 4)
    assert needs.tokens == 21 * needs.image + 37 * needs.text
    assert needs.device["parameters"] == sum(leaf.nbytes for leaf in params_of(MODEL.params))
    batch = 16 * (needs.image + needs.text)
    assert 2 * batch < needs.device["forward"] < 40 * batch
    assert needs.host["candidates"] == 100 * memory.BYTES_PER_CANDIDATE
    without = retrieval_needs(encoder, MODEL.config, params, split, 0, measured=False)
    assert (without.tokens, without.host, without.device) == (0, {}, {})


def params_of(tree: Any) -> list[np.ndarray]:
    return [leaf for part in tree.values() for leaf in params_of(part)] if isinstance(tree, dict) else [tree]
