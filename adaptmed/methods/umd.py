"""Preset of UMD's pre-training."""

from adaptmed.fusion.settings import FusionSettings
from adaptmed.pretraining.method import Method, Size, check_size
from adaptmed.pretraining.terms.image_features import ImageFeatures
from adaptmed.pretraining.terms.matching import Matching
from adaptmed.pretraining.terms.patches import HiddenPatches
from adaptmed.pretraining.terms.text_features import TextFeatures
from adaptmed.pretraining.terms.words import HiddenWords
from adaptmed.training.settings import Schedule


def umd(*, size: Size = "light", faithful: bool = False) -> Method:
    """UMD's pre-training: words and patches hidden in one pass, rebuilt as such and as a teacher's features.

    Zhang et al. 2024, "Unified multi-modal diagnostic framework with reconstruction pre-training and heterogeneity-
    combat tuning", arXiv:2404.06057: matching + 0.5 (words + patches + text features + image features), against an
    average of the student that sees the whole pair (decay 0.995). The two stages behind it are
    ``adaptmed.pretraining.calibrate`` (TD-Calib) and the coordination of gradients in fine-tuning (GM-Coord).
    Deviations: as of :func:`adaptmed.methods.m3ae`; the image's features are predicted by the decoder and not by a bare
    mask token, the target of the text's has no gradient and no padding, and the teacher is a copy in evaluation mode
    that follows once per step.

    Args:
        size: ``light`` is 256 wide with 4 heads, ``paper`` 768 wide with 12; six layers per modality in both.
        faithful: Compare features as the released code does; the teacher stays a copy.

    Raises:
        InputError: If the size is neither of the two.
    """
    check_size(size)
    paper = size == "paper"
    width, heads, dropout = (768, 12, 0.1) if paper else (256, 4, 0.0)
    return Method(
        name="umd",
        size=size,
        fusion=FusionSettings(kind="co", layers=6, width=width, heads=heads, dropout=dropout),
        terms=(
            Matching(),
            HiddenWords(weight=0.5, tied=not paper, beside="hidden"),
            HiddenPatches(weight=0.5, decoder_width=384 if paper else 192, beside="hidden"),
            ImageFeatures(faithful=faithful),
            TextFeatures(faithful=faithful),
        ),
        schedule=Schedule(epochs=100, batch_size=256, learning_rate=5e-5, weight_decay=0.01)
        if paper
        else Schedule(epochs=20, batch_size=64, learning_rate=5e-4, weight_decay=0.01),
    )
