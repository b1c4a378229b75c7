"""The matching head, and the choice of mismatched texts."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


def mismatched_texts(
    text_group: Int[Tensor, " batch"], generator: torch.Generator
) -> tuple[Int[Tensor, " batch"], Bool[Tensor, " batch"]]:
    """Choose for every item another item of the batch whose text is different.

    Args:
        text_group: Equal numbers mean identical texts; -1 means no text.
        generator: Source of the choice, on the CPU.

    Returns:
        The chosen item per item, and whether there was one to choose (False when the item has no text or every
        other text of the batch is the same as its own; the choice is then the item itself).

    Example:
        >>> choice, found = mismatched_texts(torch.tensor([5, 5, 9]), torch.Generator().manual_seed(0))
        >>> choice.tolist()[:2], found.tolist()
        ([2, 2], [True, True, True])
    """
    group = text_group.cpu()
    allowed = (group[:, None] != group[None, :]) & (group >= 0)[None, :] & (group >= 0)[:, None]
    found = allowed.any(1)
    weight = torch.where(found[:, None], allowed, torch.eye(len(group), dtype=torch.bool)).float()
    choice = torch.multinomial(weight, 1, generator=generator)[:, 0]
    return choice.to(text_group.device), found.to(text_group.device)


class MatchingHead(nn.Module):
    """From the joint vector of a pair to one logit: a learned bilinear form of its image half and its text half.

    Args:
        width: Width of the joint vector, twice the fusion's.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.image = nn.Linear(width // 2, width // 2)
        self.text = nn.Linear(width // 2, width // 2)
        self.out = nn.Linear(width // 2, 1)

    def forward(self, joint: Float[Tensor, "batch width"]) -> Float[Tensor, " batch"]:
        """Return one logit per pair; above 0 says "matched"."""
        image, text = joint.chunk(2, dim=1)
        return self.out(self.image(image) * self.text(text))[:, 0]
