"""From fused image tokens to hidden patches: the decoder of masked image modelling."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from adaptmed.layers.attention import Block
from adaptmed.layers.sincos import sincos_positions


def unshuffle(
    visible: Float[Tensor, "batch kept width"],
    kept: Int[Tensor, "batch kept"],
    fill: Float[Tensor, " width"],
    *,
    patches: int,
) -> Float[Tensor, "batch patch width"]:
    """Put visible patches back in their places and ``fill`` in all others.

    Example:
        >>> visible = torch.tensor([[[5.0], [6.0]]])
        >>> unshuffle(visible, torch.tensor([[2, 0]]), torch.zeros(1), patches=3).flatten().tolist()
        [6.0, 0.0, 5.0]
    """
    whole = fill.to(visible.dtype).expand(len(visible), patches, -1)
    return whole.scatter(1, kept[:, :, None].expand_as(visible), visible)


class PatchDecoder(nn.Module):
    """Predicts all patches of an image from its visible tokens: a narrow transformer over mask tokens and positions.

    As in M3AE: linear, mask tokens in the hidden places, fixed sine-cosine positions (zeros for tokens outside the
    grid), pre-norm blocks, norm, linear. Two deviations: GELU where M3AE has QuickGELU, and torch's initial weights.

    Args:
        width: Width of the visible tokens.
        values: Values per patch, ``patch² × 3`` for pixels.
        decoder_width: Width inside, a multiple of 4 and of ``heads``.
        blocks: Transformer blocks.
        heads: Attention heads.

    Example:
        >>> decoder = PatchDecoder(16, 12, decoder_width=8, blocks=1, heads=2)
        >>> decoder(torch.randn(1, 3, 16), torch.tensor([[0, 7]]), (3, 3)).shape  # CLS and two of nine patches
        torch.Size([1, 9, 12])

    References:
        He et al. 2022 (MAE), arXiv:2111.06377; Chen et al. 2022 (M3AE), arXiv:2209.07098.
    """

    def __init__(self, width: int, values: int, *, decoder_width: int = 384, blocks: int = 4, heads: int = 6) -> None:
        super().__init__()
        self.embed = nn.Linear(width, decoder_width)
        self.mask_token = nn.Parameter(torch.randn(decoder_width) * 0.02)
        self.blocks = nn.ModuleList(Block(decoder_width, heads) for _ in range(blocks))
        self.norm = nn.LayerNorm(decoder_width)
        self.out = nn.Linear(decoder_width, values)

    def decode(
        self, visible: Float[Tensor, "batch token width"], kept: Int[Tensor, "batch kept"], grid: tuple[int, int]
    ) -> Float[Tensor, "batch patch decoder_width"]:
        """Return the features of all patches before the last layer; arguments as of :meth:`forward`."""
        prefix, x = self.embed(visible).split([visible.shape[1] - kept.shape[1], kept.shape[1]], dim=1)
        positions = sincos_positions(grid, x.shape[2], device=x.device).to(x.dtype)
        x = unshuffle(x, kept, self.mask_token, patches=math.prod(grid)) + positions
        x = torch.cat([prefix, x], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x[:, prefix.shape[1] :])

    def forward(
        self, visible: Float[Tensor, "batch token width"], kept: Int[Tensor, "batch kept"], grid: tuple[int, int]
    ) -> Float[Tensor, "batch patch value"]:
        """Predict the values of all patches, hidden or not.

        Args:
            visible: Tokens outside the grid (CLS, registers), then those of the kept patches.
            kept: Places of the kept patches in the grid, row by row, in the order of ``visible``.
            grid: ``(height, width)`` in patches.
        """
        return self.out(self.decode(visible, kept, grid))
