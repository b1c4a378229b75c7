"""Preset of M3AE."""

from adaptmed.fusion.settings import FusionSettings
from adaptmed.pretraining.method import Method, Size, check_size
from adaptmed.pretraining.terms.matching import Matching
from adaptmed.pretraining.terms.patches import HiddenPatches
from adaptmed.pretraining.terms.words import HiddenWords
from adaptmed.training.settings import Schedule


def m3ae(*, size: Size = "light") -> Method:
    """M3AE: hidden words beside the whole image, hidden patches beside the whole text, and matching, one pass each.

    Chen et al. 2022, "Multi-modal masked autoencoders for medical vision-and-language pre-training", arXiv:2209.07098.
    Deviations: both encoders stay frozen, so that patches and words are hidden before them and the fusion alone learns
    (with LoRA if asked); patches are the cells of the bank's layout; whole words are hidden, which the released code
    means to do but does not with RoBERTa; norms have no weight decay; the rate falls as a cosine where the released one
    falls linearly. ``light`` has a narrower patch decoder (192 instead of 384), words compared with the frozen word
    embeddings by a head whose biases start at the words' frequencies, and optimiser settings of our own. ``paper``
    takes the released ones: batch 256, AdamW 5e-5 for all that is trained here, weight decay 0.01, 10 % warm-up; its
    100,000 steps are 100 epochs here, or what --epochs says.

    Args:
        size: ``light`` is 256 wide with 4 heads, ``paper`` 768 wide with 12; six layers per modality in both.

    Raises:
        InputError: If the size is neither of the two.
    """
    check_size(size)
    paper = size == "paper"
    width, heads, dropout = (768, 12, 0.1) if paper else (256, 4, 0.0)
    return Method(
        name="m3ae",
        size=size,
        fusion=FusionSettings(kind="co", layers=6, width=width, heads=heads, dropout=dropout),
        terms=(
            Matching(),
            HiddenWords(tied=not paper),
            HiddenPatches(layer=3, decoder_width=384 if paper else 192),
        ),
        schedule=Schedule(epochs=100, batch_size=256, learning_rate=5e-5, weight_decay=0.01)
        if paper
        else Schedule(epochs=20, batch_size=64, learning_rate=5e-4, weight_decay=0.01),
    )
