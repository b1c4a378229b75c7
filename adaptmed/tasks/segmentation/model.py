"""From what a bank holds to logits: fusion, or the encoder before it, and a decoder on top."""

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Self

import torch
from jaxtyping import Float
from torch import Tensor, nn

from adaptmed.bank.layout import Layout, arrange_image
from adaptmed.encoders import tokens_and_taps
from adaptmed.errors import InputError, sentence
from adaptmed.fusion import Fusion
from adaptmed.heads.decoders import Decoder, grid_map, stack_slices
from adaptmed.tasks.segmentation.windows.across import Across, brought
from adaptmed.tasks.segmentation.windows.changes import Changes
from adaptmed.types import ImageEncoder, Tokens


@dataclass(frozen=True)
class Windows:
    """Pictures, or windows of equally many slices of volumes, one behind another.

    Attributes:
        size: ``(height, width)`` that images are shown at.
        depth: Slices of a window; ``None`` for pictures.
        tokens: Of the encoder, of every picture or slice; ``None`` where it runs in the loop or nothing reads them.
        taps: Feature maps of the encoder, shallow to deep, the deepest left out; empty where nothing reads them.
        pixels: Normalised pictures or slices; ``None`` where nothing reads them.
        across: Of each window the slices in the two other planes, of volumes that were sliced in three; else empty.
        changes: Of what the decoder reads, one per picture or window; ``None`` leaves it as it is.
    """

    size: tuple[int, int]
    depth: int | None = None
    tokens: Tokens | None = None
    taps: tuple[Float[Tensor, "n _channel _row _column"], ...] = ()
    pixels: Float[Tensor, "n 3 height width_px"] | None = None
    across: tuple[tuple[Across, ...], ...] = ()
    changes: Changes | None = None

    def to(self, device: torch.device | str) -> Self:
        """Return the same windows on another device."""
        return replace(
            self,
            tokens=None if self.tokens is None else self.tokens.to(device),
            taps=tuple(tap.to(device) for tap in self.taps),
            pixels=None if self.pixels is None else self.pixels.to(device, non_blocking=True),
            across=tuple(tuple(part.to(device) for part in parts) for parts in self.across),
            changes=None if self.changes is None else self.changes.to(device),
        )


Read = tuple[list[Tensor], tuple[int, ...], Tensor | None]
"""Feature maps, the sides of the output, and pixels where the decoder reads them."""


class Segmenter(nn.Module):
    """A decoder on frozen features; parts in which nothing trains stay as they are.

    Images are read alone: no text reaches the fusion, so that a mask cannot lean on a report.

    Args:
        decoder: Maps to logits.
        fusion: Turns image Tokens into fused ones; ``None`` decodes the encoder's own.
        encoder: In the loop, when it has LoRA that trains; ``None`` when the windows hold its Tokens.
        taps: Taps to ask of that encoder, the deepest counted; 0 for none.
        layout: How that encoder's Tokens are laid out.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        fusion: Fusion | None = None,
        encoder: ImageEncoder | None = None,
        taps: int = 0,
        layout: str = "all",
    ) -> None:
        super().__init__()
        self.decoder, self.fusion, self.encoder, self.taps = decoder, fusion, encoder, taps
        self.layout = Layout.parse(layout)

    def forward(self, windows: Windows) -> Float[Tensor, "batch class *size"]:
        """Return logits in fp32 at the size that images are shown at; volumes have their slices before the rows."""
        return self.logits(self.read(windows))

    def read(self, windows: Windows) -> Read:
        """Return what the decoder reads."""
        pixels, size = windows.pixels, windows.size
        if pixels is not None and windows.depth is not None:
            pixels = stack_slices(pixels, windows.depth)
        sides = size if windows.depth is None else (windows.depth, *size)
        maps, changes = self.maps(windows), windows.changes
        if changes is not None:
            maps = [changes.of_map(values) for values in maps]
            pixels = None if pixels is None else changes.of_pixels(pixels)
        return maps, sides, pixels

    def logits(self, read: Read) -> Float[Tensor, "batch class *size"]:
        """Return logits of what the decoder reads, in fp32."""
        return self.decoder(*read).float()

    def maps(self, windows: Windows) -> list[Float[Tensor, "batch _channel *_grid"]]:
        """Return the feature maps the decoder reads: taps, and last the fused grid."""
        tokens, taps = windows.tokens, windows.taps
        if self.encoder is not None:
            tokens, taps = self._encode(windows)
        maps = list(taps)
        if tokens is not None:
            maps.append(self._fused_map(tokens))
        if windows.depth is not None:
            maps = [stack_slices(values, windows.depth) for values in maps]
        if windows.across:
            maps[-1] = torch.cat([maps[-1], self._map_across(windows.across)], dim=1)
        return maps

    def train(self, mode: bool = True) -> "Segmenter":
        """Switch dropout on or off; a frozen fusion has none in training either."""
        super().train(mode)
        if self.fusion is not None and not _trains(self.fusion):
            self.fusion.eval()
        return self

    def _fused_map(self, tokens: Tokens) -> Float[Tensor, "batch channel row column"]:
        fused = self._fuse(tokens)
        if fused.grid is None:
            expected, fix = "a fusion that keeps the grid of tokens", "Use an adaptor that is not --faithful."
            raise InputError(sentence("fusion", expected=expected, got="one token per image", fix=fix))
        return grid_map(fused.values, fused.grid, prefix=fused.prefix)

    def _map_across(self, across: tuple[tuple[Across, ...], ...]) -> Float[Tensor, "window channel depth row column"]:
        """The maps of the other planes at the places of each window, one behind another in the channels."""
        return torch.stack(
            [torch.cat([brought(self._fused_map(part.tokens), part.places) for part in parts]) for parts in across]
        )

    def _fuse(self, tokens: Tokens) -> Tokens:
        if self.fusion is None:
            return tokens
        graph = nullcontext() if _trains(self.fusion) or self.encoder is not None else torch.no_grad()
        with graph:
            fused = self.fusion(tokens).image
        assert fused is not None  # an image was given
        return fused

    def _encode(self, windows: Windows) -> tuple[Tokens, tuple[Tensor, ...]]:
        assert self.encoder is not None
        assert windows.pixels is not None  # whoever gives an encoder reads pixels
        if not self.taps:
            return arrange_image(self.encoder(windows.pixels), self.layout), ()
        tokens, taps = tokens_and_taps(self.encoder, windows.pixels, self.taps)
        return arrange_image(tokens, self.layout), tuple(taps[:-1])


def fit_entrance(model: Segmenter, parts: Iterable[Windows]) -> None:
    """Fit the statistics by which the decoder standardises its maps, on training windows.

    A decoder without such an entrance (a U-Net from scratch) is left alone.

    Args:
        model: Its maps are computed as they are now.
        parts: Windows, a batch at a time.
    """
    enter = getattr(model.decoder, "enter", None)
    if enter is None:
        return
    moments: list[list[Tensor]] = []
    with torch.inference_mode():
        for part in parts:
            moments.append([_moments(values) for values in model.maps(part)])
    statistics = []
    for of_map in zip(*moments, strict=True):
        count, total, squares = (sum(moment[k] for moment in of_map) for k in range(3))
        mean = total / count
        statistics.append((mean.float(), (squares / count - mean.square()).clamp(min=0).sqrt().float()))
    enter.fit(statistics)


def _moments(values: Float[Tensor, "batch channel *grid"]) -> Float[Tensor, "3 channel"]:
    """Count, sum and sum of squares per channel."""
    flat = values.double().transpose(0, 1).flatten(1)
    return torch.stack([torch.full_like(flat[:, 0], flat.shape[1]), flat.sum(1), flat.square().sum(1)])


def _trains(module: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in module.parameters())
