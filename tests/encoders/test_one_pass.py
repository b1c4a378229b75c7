"""Every encoder gives its Tokens and its taps in one forward pass."""

import pytest
import torch
from torch import nn

from adaptmed.encoders import tokens_and_taps
from adaptmed.types import ImageEncoder
from tests.tiny_encoders import PatchEncoder


def pictures(width_px: int) -> torch.Tensor:
    return torch.randn(2, 3, 112, width_px, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("count", [2, 4])
def test_one_pass_gives_tokens_and_taps(image_encoder: ImageEncoder, count: int) -> None:
    pixels, passes = pictures(224), []
    first = next(part for part in image_encoder.module.modules() if isinstance(part, nn.Conv2d))
    hook = first.register_forward_hook(lambda *_: passes.append(1))
    with torch.no_grad():
        tokens, maps = tokens_and_taps(image_encoder, pixels, count)
        hook.remove()
        alone, taps = image_encoder(pixels), image_encoder.taps(pixels, count)
    assert len(passes) == 1
    assert torch.equal(tokens.values, alone.values)
    assert torch.equal(tokens.pooled, alone.pooled)
    assert (tokens.grid, tokens.prefix) == (alone.grid, alone.prefix)
    assert [torch.equal(tap, found) for tap, found in zip(taps, maps, strict=True)] == [True] * count


def test_no_taps_are_the_tokens_alone(image_encoder: ImageEncoder) -> None:
    with torch.no_grad():
        tokens, maps = tokens_and_taps(image_encoder, pictures(112), 0)
        assert torch.equal(tokens.values, image_encoder(pictures(112)).values)
    assert maps == []


def test_an_encoder_without_such_a_pass_is_run_twice() -> None:
    encoder, pixels = PatchEncoder(), pictures(112)
    with torch.no_grad():
        tokens, maps = tokens_and_taps(encoder, pixels, 3)
        assert torch.equal(tokens.values, encoder(pixels).values)
    assert [tuple(tap.shape) for tap in maps] == [(2, 6, 28, 28)] * 3
