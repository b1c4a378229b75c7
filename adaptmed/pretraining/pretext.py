"""The modules with parameters that a method needs in pre-training and nowhere else."""

from torch import nn

from adaptmed.encoders import Words
from adaptmed.methods import Method
from adaptmed.pretext.feature import ImageFeatureHead, TextFeatureHead
from adaptmed.pretext.matching import MatchingHead
from adaptmed.pretext.patch import PatchDecoder
from adaptmed.pretext.word import TiedWordHead, WordHead


def build_pretext(
    method: Method, width: int, *, words: Words | None = None, cell_values: int | None = None
) -> nn.ModuleDict:
    """Build what a method needs; what it does not use does not exist.

    Args:
        method: Objectives and sizes.
        width: Of the fusion.
        words: Of the text encoder, where words are predicted.
        cell_values: Values per cell, ``side² × 3``, where pixels are predicted.

    Returns:
        Of ``matching``, ``words``, ``patches``, ``image_features`` and ``text_features`` those that are needed.

    Example:
        >>> from adaptmed import methods
        >>> list(build_pretext(methods.adaptor(), 16))
        ['matching']
    """
    parts = nn.ModuleDict()
    if method.weight_matching > 0:
        parts["matching"] = MatchingHead(2 * width)
    masking = method.masking
    if masking is None:
        return parts
    assert words is not None  # whoever hides words has a text encoder
    assert cell_values is not None
    parts["words"] = (
        TiedWordHead(width, words.embeddings) if masking.tied_words else WordHead(width, len(words.embeddings))
    )
    inside = {"decoder_width": masking.decoder_width, "blocks": masking.decoder_blocks, "heads": masking.decoder_heads}
    parts["patches"] = PatchDecoder(width, cell_values, **inside)
    if masking.weight_image_features > 0 and not masking.faithful:
        parts["image_features"] = ImageFeatureHead(masking.decoder_width, width)
    if masking.weight_text_features > 0:
        parts["text_features"] = TextFeatureHead(width, faithful=masking.faithful)
    return parts
