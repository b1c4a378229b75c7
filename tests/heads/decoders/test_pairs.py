from itertools import pairwise

import pytest
import timm
import torch

from adaptmed.encoders._timm import TimmImageEncoder
from adaptmed.errors import InputError
from adaptmed.heads.decoders import NEEDS, build_decoder, check_decoder, encoder_kind, grid_map, stack_slices
from adaptmed.heads.decoders.config import CONFIGS
from adaptmed.heads.decoders.maps import resize, sizes_between
from adaptmed.heads.decoders.pairs import SHAPES

VIT = {"depth": 4, "embed_dim": 32, "num_heads": 2, "dynamic_img_size": True}
ENCODERS = {
    "vit-16": ("vit_tiny_patch16_224", VIT, "transformer", (48, 80)),
    "vit-14-registers": ("vit_small_patch14_reg4_dinov2", VIT, "transformer", (42, 70)),
    "resnet": ("resnet10t", {}, "pyramid", (45, 71)),
    "convnext": ("test_convnext", {}, "pyramid", (64, 96)),
}


@pytest.fixture(scope="module", params=ENCODERS)
def taps(request):
    """Tokens and taps of three slices, their size and the kind of encoder they came from."""
    architecture, options, kind, size = ENCODERS[request.param]
    module = timm.create_model(architecture, num_classes=0, **options)
    encoder = TimmImageEncoder(module, name=f"timm:{architecture}")
    pixels = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        tokens = encoder(pixels)
        return tokens, encoder.taps(pixels, 3), pixels, kind


def test_the_kind_of_an_encoder_is_read_from_its_taps(taps):
    _, maps, _, kind = taps
    assert encoder_kind([values.shape[2:] for values in maps]) == kind


@pytest.mark.parametrize("dims", [2, 3])
def test_decoders_read_what_encoders_give(taps, dims):
    tokens, maps, pixels, kind = taps
    given = [*maps[:-1], grid_map(tokens.values, tokens.grid, prefix=tokens.prefix)]
    if dims == 3:
        given, pixels = [stack_slices(values, 3) for values in given], stack_slices(pixels, 3)
    for name, needs in NEEDS.items():
        if kind in needs.encoders:
            chosen = given if needs.taps else given[-1:]
            widths = tuple(values.shape[1] for values in chosen)
            decoder = build_decoder(CONFIGS[name](widths=widths, classes=2, spatial_dims=dims, channels=4))
            logits = decoder(chosen, pixels.shape[2:], pixels)
            assert logits.shape == (len(pixels), 2, *pixels.shape[2:])
            assert logits.isfinite().all()


@pytest.mark.parametrize("kind", NEEDS)
@pytest.mark.parametrize("encoder", SHAPES)
def test_declared_pairs_pass_and_others_are_refused(kind, encoder):
    if encoder in NEEDS[kind].encoders:
        check_decoder(kind, encoder=encoder, taps=4, pixels=True)
        check_decoder(kind, encoder=encoder, taps=NEEDS[kind].taps, pixels=NEEDS[kind].pixels)
        return
    with pytest.raises(
        InputError, match=rf"`decoder`: expected image-concat.* or .* for {SHAPES[encoder]}.*got {kind}"
    ):
        check_decoder(kind, encoder=encoder, taps=4, pixels=True)


def test_what_the_bank_lacks_is_named():
    with pytest.raises(
        InputError, match=r"at least 2 for the decoder dpt, but got 1\. Run `adaptmed embed` with --taps"
    ):
        check_decoder("dpt", encoder="transformer", taps=1, pixels=True)
    with pytest.raises(InputError, match=r"raw images, which the decoder image-concat reads.*--pixels"):
        check_decoder("image-concat", encoder="pyramid", taps=0, pixels=False)
    with pytest.raises(InputError, match=r"expected image-concat, dpt or unetr for .* but got segformer"):
        check_decoder("segformer", encoder="transformer", taps=4, pixels=True)


@pytest.mark.parametrize("grids", [[(4, 4)], [], [(4, 4), (8, 8)], [(8, 8), (8, 8), (4, 4)]])
def test_taps_of_no_kind_are_refused(grids):
    with pytest.raises(InputError, match="all of one grid or each smaller than the one before"):
        encoder_kind(grids)


def test_a_grid_is_read_row_by_row_behind_its_prefix():
    values = torch.arange(2 * 14 * 3.0).reshape(2, 14, 3)
    maps = grid_map(values, (2, 2, 3), prefix=2)
    assert maps.shape == (2, 3, 2, 2, 3)
    assert torch.equal(maps[1, :, 1, 0, 2], values[1, 2 + 6 + 2])
    with pytest.raises(InputError, match=r"2 prefix token\(s\) and a grid of 2 x 3, but got 14 tokens"):
        grid_map(values, (2, 3), prefix=2)


def test_slices_are_stacked_in_order():
    slices = torch.arange(6.0).reshape(6, 1, 1, 1).expand(6, 2, 3, 4)
    volumes = stack_slices(slices, 3)
    assert volumes[:, 0, :, 0, 0].tolist() == [[0, 1, 2], [3, 4, 5]]
    for depth in (4, 0):
        with pytest.raises(InputError, match=f"a multiple of depth={depth} slices, but got 6"):
            stack_slices(slices, depth)


@pytest.mark.parametrize("grid", [(1, 1), (16, 16), (9, 31), (3, 2, 5)])
def test_sizes_grow_evenly_and_end_at_the_input(grid):
    size = (3, 225, 301)[3 - len(grid) :]
    sizes = [grid, *sizes_between(grid, size, 4)]
    assert sizes[-1] == size
    for a, b in pairwise(sizes):
        for axis, side in enumerate(grid):
            factor = (size[axis] / side) ** (1 / 4)
            assert b[axis] == pytest.approx(a[axis] * factor, abs=(1 + factor) / 2)  # each side is rounded


def test_resizing_keeps_what_has_the_size_and_a_constant():
    maps = torch.full((1, 2, 3, 5), 7.0)
    assert resize(maps, (3, 5)) is maps
    torch.testing.assert_close(resize(maps, (8, 11)), torch.full((1, 2, 8, 11), 7.0))
    torch.testing.assert_close(resize(maps[:, :, None], (2, 4, 5)), torch.full((1, 2, 2, 4, 5), 7.0))
