import numpy as np
import pytest
import torch

from adaptmed.errors import InputError
from adaptmed.heads.decoders import DptConfig, ImageConcatConfig, build_decoder
from adaptmed.tasks.segmentation.sliding import decode_windows


def volume(slices, batch=1):
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(batch, width, slices, 2, 3, generator=generator) for width in (6, 4)]
    return maps, torch.randn(batch, 3, slices, 9, 13, generator=generator)


def slice_by_slice(maps, size, pixels):
    """What depends on nothing but its own slice: the mean of its maps plus its pixels."""
    means = sum(values.mean((1, 3, 4), keepdim=True) for values in maps)
    assert tuple(size) == tuple(pixels.shape[2:])
    return means + pixels[:, :2]


@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.75])
@pytest.mark.parametrize(("slices", "window"), [(11, 4), (8, 4), (5, 9), (1, 1)])
def test_windows_meet_their_own_maps(slices, window, overlap):
    maps, pixels = volume(slices, batch=2)
    found = decode_windows(slice_by_slice, maps, pixels, window_slices=window, overlap=overlap)
    torch.testing.assert_close(found, slice_by_slice(maps, pixels.shape[2:], pixels), rtol=1e-5, atol=1e-6)


def test_windows_are_blended_by_a_gaussian():
    maps, pixels = volume(9)
    starts = []

    def decode(cut, size, _window):
        start = next(s for s in range(9) if torch.equal(cut[0], maps[0][:, :, s : s + 4]))
        starts.append(start)
        return torch.full((1, 1, *size), float(start))

    found = decode_windows(decode, maps, pixels, window_slices=4, overlap=0.5)[0, 0, :, 4, 6].numpy()
    assert sorted(starts) == [0, 2, 4, 5]
    weight = np.exp(-((np.arange(4) - 1.5) ** 2) / (2 * (0.125 * 4) ** 2))
    total, mass = np.zeros(9), np.zeros(9)
    for start in starts:
        total[start : start + 4] += start * weight
        mass[start : start + 4] += weight
    np.testing.assert_allclose(found, total / mass, rtol=1e-4)


@pytest.mark.parametrize("config", [ImageConcatConfig, DptConfig])
def test_one_window_is_the_decoder_itself(config):
    maps, pixels = volume(4)
    maps = maps[-1:] if config is ImageConcatConfig else maps
    widths = tuple(values.shape[1] for values in maps)
    decoder = build_decoder(config(widths=widths, classes=2, spatial_dims=3, channels=4)).eval()
    with torch.no_grad():
        whole = decoder(maps, pixels.shape[2:], pixels)
        torch.testing.assert_close(decode_windows(decoder, maps, pixels, window_slices=4), whole)
        assert decode_windows(decoder, maps, pixels, window_slices=3).shape == whole.shape


def test_what_does_not_fit_is_refused():
    maps, pixels = volume(6)
    with pytest.raises(InputError, match=r"6 slices in every map, but got \[6, 5\]"):
        decode_windows(slice_by_slice, [maps[0], maps[1][:, :, 1:]], pixels, window_slices=4)
    with pytest.raises(InputError, match="at least 1, but got 0"):
        decode_windows(slice_by_slice, maps, pixels, window_slices=0)
    with pytest.raises(InputError, match=r"a share in \[0, 1\), but got 1.0"):
        decode_windows(slice_by_slice, maps, pixels, window_slices=4, overlap=1.0)
