"""Codes and scales: half a step at most, nothing lost of zeros, and no item that hangs on another."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from adaptmed.bank.quantised import LARGEST, dequantise, pack, quantise, stored_bytes, stored_features, unpack
from adaptmed.errors import BankError

FINITE = st.floats(-(2.0**100), 2.0**100, width=32)
SHAPES = arrays.array_shapes(min_dims=3, max_dims=4, min_side=1, max_side=5)


@given(arrays.arrays(np.float32, SHAPES, elements=FINITE), st.sampled_from(["int8", "int4"]))
def test_values_differ_by_half_a_step_at_most(values, dtype):
    values = torch.from_numpy(values)
    over = (2, 3) if values.ndim == 4 else (1,)
    stored = stored_features("values", values, dtype, over)
    codes, scale = stored["values"], stored["values_scale"]
    assert (codes.dtype, scale.dtype) == ({"int8": torch.int8, "int4": torch.uint8}[dtype], torch.bfloat16)
    assert all(scale.shape[axis] == (1 if axis in over else side) for axis, side in enumerate(values.shape))
    again, step = dequantise(codes, scale), scale.float()
    assert ((again - values).abs() <= 0.5 * step * (1 + 1e-5)).all()
    largest = values.abs().amax(over, keepdim=True)
    assert (step * LARGEST[dtype] >= largest).all()
    usual = largest > 1e-30
    assert (step[usual] <= largest[usual] / LARGEST[dtype] * 1.01).all()
    assert codes.nbytes + scale.nbytes == stored_bytes(values, dtype, over)


def test_a_channel_of_zeros_and_whole_steps_are_exact():
    values = torch.tensor([[[0.0, -254.0, 3.0], [0.0, 2.0, -381.0]]])
    codes, scale = quantise(values, (1,), largest=127)
    assert scale.tolist() == [[[0.0, 2.0, 3.0]]]
    assert torch.equal(dequantise(codes, scale), values)


def test_an_outlier_costs_its_own_channel_of_its_own_item_alone():
    values = torch.randn(3, 50, 4, generator=torch.Generator().manual_seed(0))
    spoilt = values.clone()
    spoilt[1, 7, 2] = 1e4
    (codes, scale), (others, other) = quantise(values, (1,)), quantise(spoilt, (1,))
    same = torch.ones(3, 1, 4, dtype=torch.bool)
    same[1, 0, 2] = False
    assert torch.equal(scale[same], other[same])
    assert not torch.equal(scale, other)
    assert torch.equal(codes[same.expand_as(codes)], others[same.expand_as(others)])


@given(st.integers(1, 5), st.integers(1, 4))
def test_an_item_has_the_same_codes_whatever_stands_beside_it(count, at):
    values = torch.randn(6, 9, 3, generator=torch.Generator().manual_seed(count))
    codes, scale = quantise(values, (1,))
    part, own = quantise(values[at : at + count], (1,))
    assert torch.equal(part, codes[at : at + count])
    assert torch.equal(own, scale[at : at + count])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(bad):
    values = torch.ones(2, 3, 4)
    values[1, 2, 3] = bad
    with pytest.raises(BankError, match=f"finite features, but got {bad}"):
        stored_features("values", values, "int8", (1,))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32])
def test_the_bytes_are_those_of_the_tensors(kind):
    values = torch.ones(2, 5, 4, 3, dtype=kind)
    for dtype in ("float16", "bfloat16", "float32", "int8", "int4"):
        for over in ((1,), (2, 3)):
            stored = stored_features("tap0", values, dtype, over)
            assert sum(tensor.nbytes for tensor in stored.values()) == stored_bytes(values, dtype, over)
            assert set(stored) == ({"tap0", "tap0_scale"} if dtype in LARGEST else {"tap0"})


@given(st.integers(1, 7), st.sampled_from([1, 2]))
def test_pairs_of_codes_come_apart_again(channels, axis):
    shape = (2, channels, 3) if axis == 1 else (2, 3, channels)
    codes = torch.randint(-7, 8, shape, generator=torch.Generator().manual_seed(channels)).to(torch.int8)
    packed = pack(codes, axis)
    assert packed.shape[axis] == -(-channels // 2)
    assert torch.equal(unpack(packed, axis, channels), codes)
