"""What hidden words and patches teach: the losses of masked pre-training, from each distinct pass once."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from adaptmed.fusion import CoFusion
from adaptmed.methods import Masking
from adaptmed.objectives.masked import masked_patch_loss, masked_word_loss, patchify
from adaptmed.objectives.reconstruction import image_feature_loss, text_feature_loss
from adaptmed.pretext.feature import released_image_features
from adaptmed.pretext.patch import PatchDecoder
from adaptmed.pretraining.contrastive import both_sides
from adaptmed.pretraining.masking import Masked
from adaptmed.training.cut_batch import ALONE, CutBatch
from adaptmed.training.encoders import OnlineEncoders
from adaptmed.types import Batch, Tokens

Losses = dict[str, Float[Tensor, ""]]


class Student(nn.Module):
    """What a teacher is a copy of: the fusion, and the encoders that are trained in the loop.

    Args:
        fusion: Of kind ``co``.
        online: ``None`` where the bank is all there is of the encoders; the teacher then costs one pass of the fusion.
    """

    def __init__(self, fusion: CoFusion, online: OnlineEncoders | None) -> None:
        super().__init__()
        self.fusion, self.online = fusion, online

    def forward(self, batch: Batch) -> tuple[Tokens, Tokens]:
        """Return the fused image and text Tokens of whole pairs."""
        image, text = both_sides(batch if self.online is None else self.online(batch))
        fused_image, fused_text = self.fusion.streams(image, text)
        assert fused_image is not None  # both were given
        assert fused_text is not None
        return fused_image, fused_text


@dataclass(frozen=True)
class Passes:
    """The streams that the heads read.

    Attributes:
        words: Text Tokens in which words are hidden, from the last layer.
        patches: Image Tokens of kept cells, from the layer that the patch decoder reads.
    """

    words: Tokens
    patches: Tokens


def masked_passes(fusion: CoFusion, batch: Batch, masked: Masked, masking: Masking) -> Passes:
    """Run the masked passes: one over both, or one each beside the other modality whole."""
    last = fusion.config.layers
    layer = last if masking.patch_layer is None else masking.patch_layer
    if masking.joint:
        patches, words = (
            of[side] for side, of in enumerate(fusion.streams_at([layer, last], masked.image, masked.text))
        )
    else:
        image, text = both_sides(batch)
        words = fusion.streams(image, masked.text)[1]
        patches = fusion.streams(masked.image, text, layer=layer)[0]
    assert words is not None  # both sides were given to every pass
    assert patches is not None
    return Passes(words, patches)


def reconstruction_losses(
    fusion: CoFusion,
    pretext: nn.ModuleDict,
    batch: Batch,
    masked: Masked,
    masking: Masking,
    *,
    teacher: Callable[[], tuple[Tokens, Tokens]] | None = None,
    cut: CutBatch = ALONE,
) -> Losses:
    """Compute the losses of hidden words and cells on one batch of pairs.

    Args:
        fusion: The trainable part.
        pretext: Of ``build_pretext``.
        batch: Image-text pairs with pixels: this process's part of the batch.
        masked: The same pairs with words and cells hidden.
        masking: What is compared.
        teacher: Its fused image and text Tokens of the whole pairs; ``None`` without feature reconstruction.
        cut: How the batch lies over processes; every process returns the losses of the whole batch.

    Returns:
        Unweighted losses by name: ``words``, ``patches``, ``text_features``, ``image_features``; and
        ``word_accuracy``, which is no loss.
    """
    passes, decoder = masked_passes(fusion, batch, masked, masking), _decoder(pretext)
    grid = _grid(passes.patches)
    decoded = decoder.decode(_seen(passes.patches, masked.kept), masked.kept, grid)
    losses = _word_losses(pretext["words"], passes.words, masked, cut)
    assert batch.pixels is not None  # the loader reads them
    cells = patchify(batch.pixels, batch.pixels.shape[-1] // grid[1])
    losses["patches"] = cut.mean_of(masked_patch_loss(decoder.out(decoded), cells, masked.hidden), masked.hidden.sum())
    if teacher is None:
        return losses
    image, text = teacher()
    if masking.weight_image_features > 0:
        cells = image.values[:, image.prefix :]
        losses["image_features"] = _image_features(pretext, passes.patches, decoded, cells, masked, masking, cut)
    if masking.weight_text_features > 0:
        losses["text_features"] = _text_features(pretext["text_features"], passes.words, text, masking, cut)
    return losses


def _image_features(
    pretext: nn.ModuleDict,
    student: Tokens,
    decoded: Float[Tensor, "batch cell decoder_width"],
    teacher: Float[Tensor, "batch cell width"],
    masked: Masked,
    masking: Masking,
    cut: CutBatch,
) -> Float[Tensor, ""]:
    """Compare the features of hidden cells with the teacher's."""
    if masking.faithful:
        kept = _seen(student, masked.kept)[:, student.prefix :]
        pair = released_image_features(_decoder(pretext), kept, masked.kept, teacher)
    else:
        pair = pretext["image_features"](decoded, teacher)
    loss = image_feature_loss(*pair, masked.hidden, faithful=masking.faithful)
    return cut.mean_of(loss, masked.hidden.sum())


def _text_features(
    head: nn.Module, student: Tokens, teacher: Tokens, masking: Masking, cut: CutBatch
) -> Float[Tensor, ""]:
    """Compare the features of a text's tokens, hidden or not, with the teacher's."""
    predicted, target = head(student.values, teacher.values)
    loss = text_feature_loss(predicted, target, student.valid, faithful=masking.faithful)
    if not masking.faithful:
        return cut.mean_of(loss, student.valid.sum())
    items, length = student.valid.shape
    longest = cut.largest(length)  # padding counts: that of the whole batch, which is zeros on both sides
    return cut.mean_of(loss * (length / longest), torch.tensor(items * longest, device=loss.device))


def _decoder(pretext: nn.ModuleDict) -> PatchDecoder:
    decoder = pretext["patches"]
    assert isinstance(decoder, PatchDecoder)  # of build_pretext
    return decoder


def _seen(image: Tokens, kept: Int[Tensor, "batch kept"]) -> Float[Tensor, "batch seen width"]:
    """Return the prefix and the kept cells, equally many of every image."""
    return image.values[image.valid].view(len(image), image.prefix + kept.shape[1], image.values.shape[2])


def _grid(image: Tokens) -> tuple[int, int]:
    assert image.grid is not None  # an image's Tokens have one
    return image.grid[-2], image.grid[-1]


def _word_losses(head: nn.Module, words: Tokens, masked: Masked, cut: CutBatch) -> Losses:
    hidden = masked.hidden_words
    logits, targets, count = head(words.values[hidden]).float(), masked.targets[hidden], hidden.sum()
    right = (logits.argmax(1) == targets).float().mean() if len(targets) else logits.sum() * 0.0
    loss = masked_word_loss(logits, targets)
    return {"words": cut.mean_of(loss, count), "word_accuracy": cut.mean_of(right.detach(), count)}
