"""Matching term: whether an image and a text belong together."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from adaptmed.fusion import Fusion
from adaptmed.objectives.matching import matching_loss
from adaptmed.pretext.matching import MatchingHead, matching_targets, mismatched_texts
from adaptmed.pretraining.method import Method
from adaptmed.pretraining.step import Step, both_sides
from adaptmed.pretraining.views import Needs, Sizes, check_share, check_weight
from adaptmed.training.cut_batch import ALONE, CutBatch
from adaptmed.types import Batch

_HARDNESS = 10.0  # factor on the cosine of two texts: ten times as likely for every 0.23 of it


@dataclass(frozen=True, kw_only=True)
class Matching:
    """Image-text matching on pairs of which every second one has another item's text.

    Attributes:
        weight: Weight of its loss; 0 leaves it and its head out.
        share: Share of a batch that is matched; it is the costly part of a step.
        negatives: The texts of mismatched pairs are drawn evenly (``random``), or rather those that resemble the
            item's own text in the frozen text encoder (``hard``).
        by_label: Mismatched pairs also differ in a label where labels are known. Off by default: labels that
            pre-training has read are labels that no low-data study may withhold.

    Raises:
        InputError: If a number lies outside its range.
    """

    name: ClassVar[str] = "matching"
    hides: ClassVar[None] = None
    weight: float = 1.0
    share: float = 1.0
    negatives: Literal["random", "hard"] = "random"
    by_label: bool = False

    def __post_init__(self) -> None:
        check_weight("matching.weight", self.weight)
        check_share("matching.share", self.share, ends=True, fix="Try 0.125.")

    def needs(self, method: Method) -> Needs:
        """Joint vectors of pairs, and labels if asked."""
        del method
        return Needs(embeddings=True, labels=self.by_label)

    def pretext(self, method: Method, sizes: Sizes) -> MatchingHead:
        """Build the head from a joint vector to one logit."""
        del method
        return MatchingHead(2 * sizes.width)

    def losses(self, step: Step) -> dict[str, Float[Tensor, ""]]:
        """Return ``matching``, and ``dropped``: how many mismatched pairs found no different text."""
        head: Any = step.pretext[self.name]
        return matching_losses(step.fusion, head, step.batch, self, seed=step.seed, cut=step.cut)


def matching_losses(
    fusion: Fusion, head: MatchingHead, batch: Batch, settings: Matching, *, seed: int, cut: CutBatch = ALONE
) -> dict[str, Float[Tensor, ""]]:
    """Compute image-text matching: one pass over pairs of which every second one has another item's text.

    Of the first ``settings.share`` of the batch every second item keeps its text; the others get one of a different
    wording, and by the settings a similar one, or one of other labels.

    Args:
        fusion: The trainable part.
        head: Of matching.
        batch: Image-text pairs: this process's part of the batch.
        settings: Of the term.
        seed: Of the mismatched texts.
        cut: How the batch lies over processes; every process returns the loss of the whole batch.

    Returns:
        ``matching``, and ``dropped``: how many mismatched pairs found no different text.
    """
    image, text = both_sides(batch)
    group = cut.whole(batch.text_group)
    items = torch.arange(min(len(group), max(2, round(settings.share * len(group)))), device=group.device)
    pooled = functional.normalize(text.pooled.float(), dim=1)
    pooled = cut.whole(pooled) if settings.negatives == "hard" else pooled
    similarity = _HARDNESS * pooled @ pooled.T if settings.negatives == "hard" else None
    labels = None if batch.labels is None else cut.whole(batch.labels)
    choice, matches = _matching_pairs(group, items, seed, similarity=similarity, labels=labels)
    # Item i lies on process i % world at place i // world (CutBatch): this process fuses its own items alone, with
    # whichever texts were chosen for them.
    mine = torch.arange(len(items), device=group.device)[cut.processes.part]
    texts = cut.tokens_of(text, choice).select(mine)
    joint = fusion.fuse(image.select(mine // cut.processes.world), texts)[2]
    matching = matching_loss(cut.whole(head(joint).float()), matches)
    return {"matching": matching, "dropped": matches.isnan().sum().float()}


def _matching_pairs(
    group: Int[Tensor, " batch"],
    items: Int[Tensor, " k"],
    seed: int,
    *,
    similarity: Float[Tensor, "batch batch"] | None,
    labels: Float[Tensor, "batch label"] | None,
) -> tuple[Int[Tensor, " k"], Float[Tensor, " k"]]:
    """Choose whose text stands beside each item, and say whether it is its own; NaN where there is none to choose."""
    keep = items % 2 == 0
    generator = torch.Generator().manual_seed(seed)
    other, found = mismatched_texts(group, generator, similarity=similarity, labels=labels)
    return torch.where(keep, items, other[items]), matching_targets(keep, found[items])
