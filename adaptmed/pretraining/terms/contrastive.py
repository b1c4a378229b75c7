"""Contrastive term: images alone against texts alone."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float, Int
from torch import Tensor

from adaptmed.errors import InputError, sentence
from adaptmed.fusion import Fusion
from adaptmed.layers.draws import step_seed
from adaptmed.objectives.contrastive import info_nce
from adaptmed.pretext.dropping import drop_tokens
from adaptmed.pretraining.method import Method
from adaptmed.pretraining.step import Step, both_sides
from adaptmed.pretraining.views import Needs, Sizes, check_share, check_weight
from adaptmed.training.cut_batch import ALONE, CutBatch
from adaptmed.types import Batch


@dataclass(frozen=True, kw_only=True)
class Contrastive:
    """InfoNCE between the embeddings of images alone and of texts alone.

    Attributes:
        weight: Weight of its loss; 0 leaves it out.
        image_to_text: Share of the direction from images to texts.
        token_dropout: Share of tokens left out in training.
        positives: ``identical-text`` takes equal reports in a batch as positives of each other, ``same-patient`` all
            reports of a patient, for tables with several images and captions of one case; ``pair`` takes neither.

    Raises:
        InputError: If a number lies outside its range.
    """

    name: ClassVar[str] = "contrastive"
    hides: ClassVar[None] = None
    weight: float = 1.0
    image_to_text: float = 0.25
    token_dropout: float = 0.25
    positives: Literal["identical-text", "same-patient", "pair"] = "identical-text"

    def __post_init__(self) -> None:
        check_weight("contrastive.weight", self.weight)
        check_share("contrastive.image_to_text", self.image_to_text, ends=True, fix="Try 0.25.")
        if not 0 <= self.token_dropout < 1:
            expected, got = "a share in [0, 1)", self.token_dropout
            raise InputError(sentence("contrastive.token_dropout", expected=expected, got=got, fix="Try 0.25."))

    def needs(self, method: Method) -> Needs:
        """Embeddings of both sides, and with ``same-patient`` whose they are."""
        del method
        return Needs(embeddings=True, patients=self.positives == "same-patient")

    def pretext(self, method: Method, sizes: Sizes) -> None:
        """Nothing: the fusion has all it trains."""
        del method, sizes

    def losses(self, step: Step) -> dict[str, Float[Tensor, ""]]:
        """Return ``contrastive``."""
        return {self.name: contrastive_loss(step.fusion, step.batch, self, seed=step.seed, cut=step.cut)}


def contrastive_loss(
    fusion: Fusion, batch: Batch, settings: Contrastive, *, seed: int, cut: CutBatch = ALONE
) -> Float[Tensor, ""]:
    """Compute InfoNCE between images alone and texts alone.

    Args:
        fusion: The trainable part.
        batch: Image-text pairs: this process's part of the batch.
        settings: Of the term.
        seed: Of the dropped tokens.
        cut: How the batch lies over processes; every process returns the loss of the whole batch.
    """
    image, text = both_sides(batch)
    share = settings.token_dropout if fusion.training else 0.0
    image = drop_tokens(image, share, items=batch.rows, seed=step_seed(seed, 1))
    text = drop_tokens(text, share, items=batch.rows, seed=step_seed(seed, 2))
    return info_nce(
        cut.whole(fusion.embed_image(image)),
        cut.whole(fusion.embed_text(text)),
        scale=fusion.scale(),
        weight_image_to_text=settings.image_to_text,
        text_group=None if settings.positives == "pair" else cut.whole(_groups(batch, settings)),
    )


def _groups(batch: Batch, settings: Contrastive) -> Int[Tensor, " batch"]:
    """Numbers that are equal where two pairs are positives of each other; -1 where there is no text."""
    if settings.positives == "identical-text":
        return batch.text_group
    assert batch.patient_group is not None  # the term has asked for it
    return batch.patient_group.masked_fill(batch.text_group < 0, -1)
