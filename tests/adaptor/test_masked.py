"""Cells of a layout hidden before the encoder, and outputs hidden behind it."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adaptmed.adaptor.masked import cell_grid, masked_image_tokens, masked_outputs, whole_cells
from adaptmed.bank import Layout
from adaptmed.bank.layout import arrange_image
from adaptmed.encoders import masked_tokens
from adaptmed.errors import InputError
from adaptmed.pretext.masking import kept_patches
from adaptmed.types import Tokens
from tests.tiny_encoders import PatchEncoder
from tests.tiny_models import vit

ITEMS = torch.tensor([7, 2])


@pytest.fixture(scope="module")
def encoder():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return vit("vit_tiny_patch16_224", reg_tokens=2)


def pictures(*size_px):
    return torch.randn(2, 3, *size_px, generator=torch.Generator().manual_seed(1))


def cells_of(kept, cells):
    return torch.zeros(len(kept), cells[0] * cells[1], dtype=torch.bool).scatter(1, kept, True)


# --- cells


@pytest.mark.parametrize(
    ("grid", "layout", "cells"),
    [
        ((14, 14), "grid7", (7, 7)),
        ((16, 16), "grid8", (8, 8)),
        ((24, 24), "grid8", (8, 8)),
        ((4, 16), "grid8", (4, 8)),
        ((7, 7), "grid8", (7, 7)),
        ((14, 14), "all", (14, 14)),
    ],
)
def test_cells_are_whole_blocks_of_patches(grid, layout, cells):
    assert cell_grid(grid, Layout.parse(layout)) == cells


@pytest.mark.parametrize(
    ("grid", "layout", "message"),
    [
        (
            (14, 14),
            "grid8",
            r"`grid`: expected a side that divides 14 x 14 patches \(1, 2, 7, 14\), but got 8.*--grid 7",
        ),
        ((37, 37), "grid8", r"\(1, 37\), but got 8. Pass --grid 37"),
        ((16, 12), "grid8", r"\(1, 2, 4, 16\), but got 8. Pass --grid 4"),
        ((14, 14), "pooled", "`layout`: expected a grid of cells to hide, but got pooled"),
    ],
)
def test_cells_that_share_patches_are_refused(grid, layout, message):
    with pytest.raises(InputError, match=message):
        cell_grid(grid, Layout.parse(layout))


@given(st.integers(1, 40), st.integers(1, 40))
def test_the_finest_layout_up_to_eight_is_whole(height, width):
    try:
        layout = whole_cells((height, width))
    except InputError:
        assert not any(height % side == 0 and width % side == 0 for side in range(2, 9))
        return
    rows, columns = cell_grid((height, width), layout)
    assert height % rows == 0
    assert width % columns == 0
    assert max(rows, columns) <= 8


def test_a_prime_grid_has_no_cells_of_its_own():
    with pytest.raises(InputError, match=r"`image_size_px`: expected a grid of patches.*but got 37 x 37.*--layout all"):
        whole_cells((37, 37))


# --- before the encoder


@pytest.mark.parametrize("layout", ["all", "grid4", "grid2"])
def test_seen_cells_are_the_means_of_their_patches_and_the_others_zero(encoder, layout):
    pixels, layout = pictures(128, 256), Layout.parse(layout)
    cells = cell_grid((8, 16), layout)
    with torch.no_grad():
        tokens, kept = masked_image_tokens(encoder, pixels, layout, items=ITEMS, seed=3, ratio=0.5)
    assert torch.equal(kept, kept_patches(ITEMS, cells, seed=3, ratio=0.5))
    assert tokens.grid == cells
    seen = cells_of(kept, cells)
    assert torch.equal(tokens.valid, torch.cat([torch.ones(2, 3, dtype=torch.bool), seen], dim=1))
    assert not tokens.values[~tokens.valid].any()
    block = (8 // cells[0], 16 // cells[1])
    patches = seen.unflatten(1, cells).repeat_interleave(block[0], 1).repeat_interleave(block[1], 2).flatten(1)
    places = torch.stack([row.nonzero()[:, 0] for row in patches])
    with torch.no_grad():
        plain = masked_tokens(encoder, pixels, places)
    for image in range(2):
        for cell in kept[image].tolist():
            rows = range(cell // cells[1] * block[0], (cell // cells[1] + 1) * block[0])
            columns = range(cell % cells[1] * block[1], (cell % cells[1] + 1) * block[1])
            mean = torch.stack([plain.values[image, 3 + row * 16 + column] for row in rows for column in columns])
            torch.testing.assert_close(tokens.values[image, 3 + cell], mean.mean(0))
    torch.testing.assert_close(tokens.values[:, :3], plain.values[:, :3])
    torch.testing.assert_close(tokens.pooled, plain.pooled)


def test_pixels_of_hidden_cells_change_nothing(encoder):
    pixels, layout = pictures(128, 128), Layout("grid", 4)
    with torch.no_grad():
        before, kept = masked_image_tokens(encoder, pixels, layout, items=ITEMS, seed=0, ratio=0.75)
        seen = cells_of(kept, (4, 4)).unflatten(1, (1, 4, 4)).repeat_interleave(32, 2).repeat_interleave(32, 3)
        other = torch.where(seen, pixels, pixels.flip(3) + 5)
        after, _ = masked_image_tokens(encoder, other, layout, items=ITEMS, seed=0, ratio=0.75)
    assert seen.float().mean() == 0.25
    assert torch.equal(before.values, after.values)
    assert torch.equal(before.pooled, after.pooled)


def test_nothing_hidden_is_the_layout_of_the_plain_pass(encoder):
    pixels, layout = pictures(128, 128), Layout("grid", 4)
    with torch.no_grad():
        tokens, kept = masked_image_tokens(encoder, pixels, layout, items=ITEMS, seed=0, ratio=0.0)
        plain = arrange_image(encoder(pixels), layout)
    torch.testing.assert_close(tokens.values, plain.values)
    torch.testing.assert_close(tokens.pooled, plain.pooled)
    assert tokens.valid.all()
    assert kept.tolist() == [list(range(16))] * 2


def test_the_choice_is_the_item_s_own(encoder):
    pixels, layout = pictures(128, 128), Layout("grid", 4)
    with torch.no_grad():
        both, kept = masked_image_tokens(encoder, pixels, layout, items=ITEMS, seed=5, ratio=0.75)
        alone, own = masked_image_tokens(encoder, pixels[1:], layout, items=ITEMS[1:], seed=5, ratio=0.75)
        _, other = masked_image_tokens(encoder, pixels, layout, items=ITEMS, seed=6, ratio=0.75)
    assert torch.equal(own, kept[1:])
    assert not torch.equal(other, kept)
    torch.testing.assert_close(alone.values, both.values[1:])


def test_gradients_reach_seen_pixels_alone(encoder):
    pixels = pictures(128, 128).requires_grad_()
    tokens, kept = masked_image_tokens(encoder, pixels, Layout("grid", 2), items=ITEMS, seed=0, ratio=0.75)
    tokens.values.square().sum().backward()
    read = pixels.grad.abs().amax(1).unfold(1, 64, 64).unfold(2, 64, 64).amax((3, 4)).flatten(1) > 0
    assert torch.equal(read, cells_of(kept, (2, 2)))


def test_a_ratio_that_leaves_no_cell_says_so(encoder):
    with pytest.raises(InputError, match=r"`ratio`: .*leaves at least one of 1 patches, but got 0\.75"):
        masked_image_tokens(encoder, pictures(128, 128), Layout("grid", 1), items=ITEMS, seed=0, ratio=0.75)


def test_a_network_without_patches_says_what_it_can():
    with pytest.raises(InputError, match="a CNN can only have its outputs hidden"):
        masked_image_tokens(PatchEncoder(), pictures(40, 40), Layout("all"), items=ITEMS, seed=0, ratio=0.5)


# --- behind the encoder


def test_outputs_are_hidden_behind_the_encoder():
    plain = PatchEncoder()(pictures(40, 40))
    hidden, kept = masked_outputs(plain, items=ITEMS, seed=4, ratio=0.75)
    assert torch.equal(kept, kept_patches(ITEMS, (10, 10), seed=4, ratio=0.75))
    seen = torch.cat([torch.ones(2, 1, dtype=torch.bool), cells_of(kept, (10, 10))], dim=1)
    assert torch.equal(hidden.valid, seen)
    assert torch.equal(hidden.values[seen], plain.values[seen])
    assert not hidden.values[~seen].any()
    rows = torch.arange(2)[:, None]
    torch.testing.assert_close(hidden.pooled, plain.values[rows, 1 + kept].mean(1))
    assert (hidden.grid, hidden.prefix) == (plain.grid, plain.prefix)


def test_texts_have_no_cells():
    words = Tokens(torch.zeros(2, 3, 4), torch.ones(2, 3, dtype=torch.bool), torch.zeros(2, 4))
    with pytest.raises(InputError, match="`tokens`: expected Tokens of images, but got Tokens without a grid"):
        masked_outputs(words, items=ITEMS, seed=0)
