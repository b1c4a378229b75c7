import numpy as np
import pytest
import timm.data
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from adaptmed.data.images import from_bytes, prepare, to_bytes
from adaptmed.errors import InputError
from adaptmed.types import Preprocessing

HALF = (0.5, 0.5, 0.5)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def pictures(*tail):
    rng = np.random.default_rng(7)
    rough = rng.integers(0, 256, (6, 8, *tail), dtype=np.uint8)
    return np.asarray(Image.fromarray(rough).resize((311, 240), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("size", [(311, 240), (200, 411), (97, 97), (300, 40)])
@pytest.mark.parametrize("crop", [1.0, 0.9, 0.875])
@pytest.mark.parametrize("target", [(224, 224), (96, 160)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_crop_equals_the_evaluation_transform_of_timm(size, crop, target, interpolation):
    picture = np.random.default_rng(1).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    facts = Preprocessing(target, *IMAGENET, interpolation, crop)
    transform = timm.data.create_transform(
        (3, *target), interpolation=interpolation, mean=IMAGENET[0], std=IMAGENET[1], crop_pct=crop, crop_mode="center"
    )
    want = transform(Image.fromarray(picture))
    got = prepare(picture, facts)
    assert got.shape == want.shape == (3, *target)
    assert (got - want).abs().max() <= 1e-6


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_grey_colour_8_bit_and_float_agree(fit):
    facts = Preprocessing((64, 48), *IMAGENET, fit=fit)
    grey = pictures()
    as_colour = prepare(np.stack([grey] * 3, axis=-1), facts)
    step = 1 / 255 / min(IMAGENET[1])
    assert (prepare(grey, facts) - as_colour).abs().max() <= 1e-6
    assert (prepare(grey.astype(np.float32) / 255, facts) - as_colour).abs().max() <= 2.1 * step
    assert (prepare(np.stack([grey] * 3, axis=-1) / 255.0, facts) - as_colour).abs().max() <= 2.1 * step


def test_pad_keeps_the_aspect_and_fills_with_black():
    facts = Preprocessing((32, 32), HALF, HALF, fit="pad")
    out = prepare(np.full((50, 100), 255, np.uint8), facts)
    assert (out[:, 8:24] == 1).all()
    assert (out[:, :8] == -1).all()
    assert (out[:, 24:] == -1).all()
    sideways = prepare(np.full((100, 50), 1.0, np.float32), facts)
    assert torch.equal(sideways, out.transpose(1, 2))


def test_squash_keeps_everything_and_nearest_invents_nothing():
    corner = np.zeros((40, 80), np.uint8)
    corner[:, 70:] = 255
    facts = Preprocessing((16, 16), HALF, HALF, "nearest", fit="squash")
    out = prepare(corner, facts)
    assert (out[:, :, 14:] == 1).all()
    assert (out[:, :, :14] == -1).all()


@given(
    height=st.integers(1, 400),
    width=st.integers(1, 400),
    fit=st.sampled_from(["crop", "pad", "squash"]),
    crop=st.floats(0.3, 1.0),
    target=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    colour=st.booleans(),
    kind=st.sampled_from([np.uint8, np.float32, np.float64]),
)
def test_any_size_gives_the_input_size(height, width, fit, crop, target, colour, kind):
    picture = np.ones((height, width, 3) if colour else (height, width), dtype=kind)
    out = prepare(picture, Preprocessing(target, HALF, HALF, crop_fraction=crop, fit=fit))
    assert out.shape == (3, *target)
    assert out.dtype == torch.float32
    assert out.is_contiguous()
    assert out.abs().max() <= 1 + 1e-6


def test_an_extreme_shape_needs_no_extreme_memory():
    picture = np.ones((1, 60_000), np.uint8)
    with pytest.raises(InputError, match=r"`image`: expected sides that differ less.* but got 60000 × 1"):
        prepare(picture, Preprocessing((224, 224), HALF, HALF))
    assert prepare(picture, Preprocessing((224, 224), HALF, HALF, fit="pad")).shape == (3, 224, 224)


@pytest.mark.parametrize("shape", [(4,), (4, 4, 2), (0, 4), (2, 4, 4, 3)])
def test_bad_shapes(shape):
    with pytest.raises(InputError, match=r"`image`: expected shape \(height, width\)"):
        prepare(np.zeros(shape, np.uint8), Preprocessing((8, 8), HALF, HALF))


@given(picture=hnp.arrays(np.uint8, (9, 7, 3)))
def test_8_bit_pictures_come_back_from_the_input_exactly(picture):
    facts = Preprocessing((9, 7), *IMAGENET, fit="squash")
    pixels = prepare(picture, facts)[None]
    stored = to_bytes(pixels, facts)
    assert np.array_equal(stored[0].permute(1, 2, 0).numpy(), picture)
    assert torch.allclose(from_bytes(stored, facts), pixels, rtol=0, atol=1e-6)


@given(picture=hnp.arrays(np.float32, (9, 7), elements=st.floats(0, 1, width=32)))
def test_finer_pictures_come_back_within_half_a_step(picture):
    facts = Preprocessing((8, 12), *IMAGENET)
    pixels = prepare(picture, facts)[None]
    off = (from_bytes(to_bytes(pixels, facts), facts) - pixels).abs().amax((0, 2, 3))
    assert (off <= 0.5 / 255 / torch.tensor(facts.std) + 1e-5).all()
