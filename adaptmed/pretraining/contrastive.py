"""What pairs teach as wholes: contrast between the modalities alone, and matching of the two sides."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from adaptmed.fusion import Fusion
from adaptmed.layers.draws import step_seed
from adaptmed.methods import Method
from adaptmed.objectives.contrastive import info_nce
from adaptmed.objectives.matching import matching_loss
from adaptmed.pretext.dropping import drop_tokens
from adaptmed.pretext.matching import MatchingHead, matching_targets, mismatched_texts
from adaptmed.training.cut_batch import ALONE, CutBatch
from adaptmed.types import Batch, Tokens

_HARDNESS = 10.0  # factor on the cosine of two texts: ten times as likely for every 0.23 of it


def contrastive_loss(
    fusion: Fusion, batch: Batch, method: Method, *, seed: int, cut: CutBatch = ALONE
) -> Float[Tensor, ""]:
    """Compute InfoNCE between images alone and texts alone.

    Args:
        fusion: The trainable part.
        batch: Image-text pairs: this process's part of the batch.
        method: Weights and options.
        seed: Of the dropped tokens.
        cut: How the batch lies over processes; every process returns the loss of the whole batch.
    """
    image, text = both_sides(batch)
    share = method.token_dropout if fusion.training else 0.0
    image = drop_tokens(image, share, items=batch.rows, seed=step_seed(seed, 1))
    text = drop_tokens(text, share, items=batch.rows, seed=step_seed(seed, 2))
    return info_nce(
        cut.whole(fusion.embed_image(image)),
        cut.whole(fusion.embed_text(text)),
        scale=fusion.scale(),
        weight_image_to_text=method.weight_image_to_text,
        text_group=cut.whole(batch.text_group) if method.positives == "identical-text" else None,
    )


def matching_losses(
    fusion: Fusion, head: MatchingHead, batch: Batch, method: Method, *, seed: int, cut: CutBatch = ALONE
) -> dict[str, Float[Tensor, ""]]:
    """Compute image-text matching: one pass over pairs of which every second one has another item's text.

    Of the first ``matching_share`` of the batch every second item keeps its text; the others get one of a different
    wording, and by the options of the method a similar one, or one of other labels.

    Args:
        fusion: The trainable part.
        head: Of matching.
        batch: Image-text pairs: this process's part of the batch.
        method: Weights and options.
        seed: Of the mismatched texts.
        cut: How the batch lies over processes; every process returns the loss of the whole batch.

    Returns:
        ``matching``, and ``dropped``: how many mismatched pairs found no different text.
    """
    image, text = both_sides(batch)
    group = cut.whole(batch.text_group)
    items = torch.arange(min(len(group), max(2, round(method.matching_share * len(group)))), device=group.device)
    pooled = functional.normalize(text.pooled.float(), dim=1)
    pooled = cut.whole(pooled) if method.negatives == "hard" else pooled
    similarity = _HARDNESS * pooled @ pooled.T if method.negatives == "hard" else None
    labels = None if batch.labels is None else cut.whole(batch.labels)
    choice, matches = _matching_pairs(group, items, seed, similarity=similarity, labels=labels)
    mine = torch.arange(len(items), device=group.device)[cut.processes.part]
    texts = cut.tokens_of(text, choice).select(mine)
    joint = fusion.fuse(image.select(mine // cut.processes.world), texts)[2]
    matching = matching_loss(cut.whole(head(joint).float()), matches)
    return {"matching": matching, "dropped": matches.isnan().sum().float()}


def both_sides(batch: Batch) -> tuple[Tokens, Tokens]:
    """Return the image and the text Tokens of a batch of pairs; the loader takes pairs only."""
    assert batch.image is not None
    assert batch.text is not None
    return batch.image, batch.text


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
