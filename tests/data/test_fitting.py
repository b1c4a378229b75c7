import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adaptmed.data.fitting import logits_to_source, mask_to_input, place
from adaptmed.data.images import prepare
from adaptmed.errors import InputError
from adaptmed.types import Preprocessing

HALF = (0.5, 0.5, 0.5)
FITS = ("crop", "pad", "squash")
sizes = st.tuples(st.integers(8, 120), st.integers(8, 120))
all_facts = st.builds(
    lambda target, fit, crop: Preprocessing(target, HALF, HALF, "bilinear", crop, fit),
    st.tuples(st.integers(8, 60), st.integers(8, 60)),
    st.sampled_from(FITS),
    st.floats(0.7, 1.0),
)


def one_hot(mask, classes):
    """Logits that are sure of a mask; -1 is nobody's."""
    return torch.stack([(mask == k).float() for k in range(classes)])


def coarseness(size, facts):
    """How many source pixels an input pixel covers on each side, at least one."""
    return [max(1.0, side.source / side.resized) for side in place(size, facts)]


@given(size=sizes, facts=all_facts)
def test_a_mask_lies_where_its_image_lies(size, facts):
    """Every pixel of picture and mask tells its own row and column."""
    positions = np.mgrid[: size[0], : size[1]]
    blurs = coarseness(size, facts)
    for axis in (0, 1):
        seen = (prepare((positions[axis] / size[axis]).astype(np.float32), facts)[0] + 1) / 2 * size[axis]
        laid = mask_to_input(positions[axis], facts)
        assert laid.shape == facts.image_size_px
        assert laid.dtype == torch.int64
        shown = laid >= 0
        assert shown.any()
        assert (seen - laid)[shown].abs().max() <= 1.01 * blurs[axis]
        assert (seen[~shown] == 0).all()
        assert facts.fit == "pad" or shown.all()


@given(size=sizes, facts=all_facts, data=st.data())
def test_a_square_in_the_middle_comes_back_within_a_pixel(size, facts, data):
    low, high = data.draw(st.tuples(st.floats(0.3, 0.45), st.floats(0.55, 0.7)))
    (top, bottom), (left, right) = ((math.floor(low * side), math.ceil(high * side)) for side in size)
    mask = np.zeros(size, np.uint8)
    mask[top:bottom, left:right] = 1
    back = logits_to_source(one_hot(mask_to_input(mask, facts), 2), size, facts)
    assert back.shape == (2, *size)
    found = back.argmax(0).numpy()
    seen = back[1].isfinite().numpy()
    reach = [math.ceil(blur) for blur in coarseness(size, facts)]
    inner = np.zeros_like(mask)
    inner[top + reach[0] : bottom - reach[0], left + reach[1] : right - reach[1]] = 1
    outer = np.zeros_like(mask)
    outer[max(0, top - reach[0]) : bottom + reach[0], max(0, left - reach[1]) : right + reach[1]] = 1
    assert (found[seen] >= inner[seen]).all()
    assert (found <= outer).all()


@given(size=st.tuples(st.integers(1, 12), st.integers(1, 12)), factor=st.integers(1, 5), seed=st.integers(0, 99))
def test_whole_multiples_come_back_exactly(size, factor, seed):
    mask = np.random.default_rng(seed).integers(0, 4, size)
    for fit in ("squash", "pad"):
        facts = Preprocessing((size[0] * factor, size[1] * factor), HALF, HALF, fit=fit)
        back = logits_to_source(one_hot(mask_to_input(mask, facts), 4), size, facts)
        assert (back.argmax(0).numpy() == mask).all()


@given(size=sizes, facts=all_facts)
@settings(max_examples=30)
def test_slices_of_a_volume_are_laid_one_by_one(size, facts):
    rng = np.random.default_rng(0)
    masks = rng.integers(0, 3, (4, *size))
    laid = mask_to_input(masks, facts)
    assert torch.equal(laid, torch.stack([mask_to_input(mask, facts) for mask in masks]))
    logits = torch.from_numpy(rng.normal(size=(3, 4, *facts.image_size_px))).float()
    back = logits_to_source(logits, size, facts)
    apart = [logits_to_source(logits[:, k], size, facts) for k in range(4)]
    torch.testing.assert_close(back, torch.stack(apart, dim=1))


@pytest.mark.parametrize("size", [(50, 100), (100, 50), (31, 97)])
def test_what_is_predicted_on_padding_is_ignored(size):
    facts = Preprocessing((32, 40), HALF, HALF, fit="pad")
    padding = mask_to_input(np.zeros(size, np.uint8), facts) == -1
    assert padding.any()
    logits = torch.randn(3, 32, 40)
    want = logits_to_source(logits, size, facts)
    assert want.isfinite().all()
    for noise in (1e9, math.nan):
        logits[:, padding] = noise
        assert torch.equal(logits_to_source(logits, size, facts), want)


def test_what_a_crop_leaves_out_is_background():
    facts = Preprocessing((32, 32), HALF, HALF, crop_fraction=0.5)
    sure = one_hot(torch.ones(32, 32), 2) * 20
    shares = logits_to_source(sure, (100, 200), facts).softmax(0)
    assert (shares[1, 26:74, 76:124] > 0.99).all()
    outside = torch.ones(100, 200, dtype=torch.bool)
    outside[25:75, 75:125] = False
    assert (shares[0, outside] == 1).all()
    assert (shares[1, outside] == 0).all()
    assert ((shares[1] > 0.5) == ~outside).all()


def test_pixels_are_weighed_linearly():
    facts = Preprocessing((1, 2), HALF, HALF, fit="squash")
    back = logits_to_source(torch.tensor([[[0.0, 0.0]], [[0.0, 4.0]]]), (1, 8), facts)
    torch.testing.assert_close(back[1, 0], torch.tensor([0.0, 0.0, 0.5, 1.5, 2.5, 3.5, 4.0, 4.0]))


def test_half_precision_and_another_size():
    facts = Preprocessing((8, 8), HALF, HALF)
    assert logits_to_source(torch.zeros(2, 8, 8, dtype=torch.bfloat16), (9, 9), facts).dtype == torch.float32
    with pytest.raises(InputError, match="`logits`: expected the size of the input, 8 × 8, but got 4 × 8"):
        logits_to_source(torch.zeros(2, 4, 8), (9, 9), facts)
