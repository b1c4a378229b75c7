"""The matching head, and the choice of mismatched texts."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


def mismatched_texts(
    text_group: Int[Tensor, " batch"],
    generator: torch.Generator,
    *,
    similarity: Float[Tensor, "batch batch"] | None = None,
    labels: Float[Tensor, "batch label"] | None = None,
) -> tuple[Int[Tensor, " batch"], Bool[Tensor, " batch"]]:
    """Choose for every item another item of the batch whose text does not belong to it.

    Such a text is worded differently and, where labels are known, does not say the same: two items whose labels agree
    wherever both are known, at least once, are no mismatch.

    Args:
        text_group: Equal numbers mean identical texts; -1 means no text.
        generator: Source of the choice, on the CPU.
        similarity: Of image ``i`` and text ``j``, for hard negatives: text ``j`` is drawn in proportion to
            ``exp(similarity)``, so the scale says how hard. Finite; no gradient is taken. ``None`` draws evenly.
        labels: NaN where not known. ``None`` knows none.

    Returns:
        The chosen item per item, and whether there was one to choose (False when the item has no text or no other text
        of the batch mismatches; the choice is then the item itself, and the pair counts for nothing).

    Example:
        >>> choice, found = mismatched_texts(torch.tensor([5, 5, 9]), torch.Generator().manual_seed(0))
        >>> choice.tolist()[:2], found.tolist()
        ([2, 2], [True, True, True])
        >>> same = torch.ones(3, 1)
        >>> mismatched_texts(torch.tensor([5, 5, 9]), torch.Generator(), labels=same)[1].tolist()
        [False, False, False]

    References:
        Hard negatives: Li et al. 2021 (ALBEF), arXiv:2107.07651; labels: Moon et al. 2022 (MedViLL), arXiv:2105.11333.
    """
    group = text_group.cpu()
    allowed = (group[:, None] != group[None, :]) & (group >= 0)[None, :] & (group >= 0)[:, None]
    if labels is not None:
        allowed &= ~_say_the_same(labels.cpu())
    found = allowed.any(1)
    allowed = torch.where(found[:, None], allowed, torch.eye(len(group), dtype=torch.bool))
    weight = allowed.float()
    if similarity is not None:
        weight = similarity.detach().cpu().float().masked_fill(~allowed, -math.inf).softmax(1)
    choice = torch.multinomial(weight, 1, generator=generator)[:, 0]
    return choice.to(text_group.device), found.to(text_group.device)


def matching_targets(matched: Bool[Tensor, " batch"], found: Bool[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Say what the matching loss should see: 1 for a matched pair, 0 for a mismatched one, NaN where none was found.

    The pairs with NaN are dropped from the loss; ``isnan().sum()`` counts them.

    Args:
        matched: True where the item keeps its own text.
        found: As :func:`mismatched_texts` returns it.

    Example:
        >>> matching_targets(torch.tensor([True, False, False]), torch.tensor([False, True, False])).tolist()
        [1.0, 0.0, nan]
    """
    return matched.float().masked_fill(~matched & ~found, math.nan)


def _say_the_same(labels: Float[Tensor, "batch label"]) -> Bool[Tensor, "batch batch"]:
    known = ~labels.isnan()
    both = known[:, None] & known[None, :]
    differ = both & (labels[:, None] != labels[None, :])
    return both.any(2) & ~differ.any(2)


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
