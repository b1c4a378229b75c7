"""The published methods as presets: fusion, pretext, objectives and optimiser settings, nothing hidden."""

from dataclasses import replace
from typing import Any, Literal

from adaptmed.errors import InputError, sentence
from adaptmed.methods.settings import Masking, Method, Schedule, from_json

__all__ = ["Masking", "Method", "Schedule", "adaptor", "from_json", "m3ae", "umd"]


def adaptor(*, size: Literal["light", "paper"] = "light", faithful: bool = False) -> Method:
    """The Adaptor paper: InfoNCE between images alone and texts alone through a shared ``cross`` fusion.

    Qin, Liu, Cheng, Guo, Arcucci 2024, "Freeze the backbones", arXiv:2401.01179. Deviations: tokens instead of
    pooled vectors, identical reports are positives of each other, matching trains the cross mode, the temperature is
    clamped, and the optimiser settings and dropped tokens of ``light`` are our own (chosen on phantom seeds 7 and 101,
    which are no reported ones: there 1,500 pairs were memorised in 30 epochs without dropped tokens, and dropout inside
    the layers beside them changed no AUROC by more than 0.001). ``paper``
    and ``faithful`` take the released ones: batch 1024, 50 epochs, AdamW 2e-5 with weight decay 0.01, 2 % warm-up.
    The released schedule falls linearly; ours as a cosine.

    Args:
        size: ``light`` is 256 wide with 4 heads, ``paper`` 768 wide with 12.
        faithful: The released arrangement (one pooled token); implies ``size="paper"`` and no matching.

    Raises:
        InputError: If the size is neither of the two.
    """
    _check_size(size)
    if size == "light" and not faithful:
        return Method(name="adaptor", schedule=Schedule(least_steps=60))
    released = Schedule(epochs=50, batch_size=1024, learning_rate=2e-5, weight_decay=0.01, warmup_share=0.02)
    return Method(
        name="adaptor",
        size="paper",
        width=768,
        heads=12,
        dropout=0.1,
        faithful=faithful,
        token_dropout=0.0,
        weight_matching=0.0 if faithful else 0.3,
        positives="pair" if faithful else "identical-text",
        schedule=released,
    )


def m3ae(*, size: Literal["light", "paper"] = "light") -> Method:
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
    return _masked("m3ae", size, Masking(patch_layer=3))


def umd(*, size: Literal["light", "paper"] = "light", faithful: bool = False) -> Method:
    """UMD's pre-training: words and patches hidden in one pass, rebuilt as such and as a teacher's features.

    Zhang et al. 2024, "Unified multi-modal diagnostic framework with reconstruction pre-training and heterogeneity-
    combat tuning", arXiv:2404.06057: matching + 0.5 (words + patches + text features + image features), against an
    average of the student that sees the whole pair (decay 0.995). The two stages behind it are
    ``adaptmed.pretraining.calibrate`` (TD-Calib) and the coordination of gradients in fine-tuning (GM-Coord).
    Deviations: as of :func:`m3ae`; the image's features are predicted by the decoder and not by a bare mask token, the
    target of the text's has no gradient and no padding, and the teacher is a copy in evaluation mode that follows once
    per step.

    Args:
        size: As of :func:`m3ae`.
        faithful: Compare features as the released code does; the teacher stays a copy.

    Raises:
        InputError: If the size is neither of the two.
    """
    features: dict[str, Any] = {"weight_text_features": 0.5, "weight_image_features": 0.5}
    masking = Masking(joint=True, weight_words=0.5, weight_patches=0.5, faithful=faithful, **features)
    return _masked("umd", size, masking)


def _masked(name: str, size: Literal["light", "paper"], masking: Masking) -> Method:
    _check_size(size)
    shared: dict[str, Any] = {"fusion": "co", "layers": 6, "token_dropout": 0.0, "positives": "pair"}
    shared |= {"weight_contrastive": 0.0, "weight_matching": 1.0, "matching_share": 1.0}
    if size == "light":
        schedule = Schedule(epochs=20, batch_size=64, learning_rate=5e-4, weight_decay=0.01)
        return Method(name=name, masking=masking, schedule=schedule, **shared)
    masking = replace(masking, decoder_width=384, tied_words=False)
    schedule = Schedule(epochs=100, batch_size=256, learning_rate=5e-5, weight_decay=0.01)
    shared |= {"size": "paper", "width": 768, "heads": 12, "dropout": 0.1}
    return Method(name=name, masking=masking, schedule=schedule, **shared)


def _check_size(size: str) -> None:
    if size not in ("light", "paper"):
        raise InputError(sentence("size", expected="'light' or 'paper'", got=repr(size), fix="Choose one."))
