"""What a trained adaptor does without labels: classification from prompts, and retrieval both ways."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from adaptmed.adaptor.features import embed_images, embed_rows
from adaptmed.adaptor.model import Adaptor
from adaptmed.bank import Bank
from adaptmed.errors import AdaptmedError
from adaptmed.fusion import Fusion
from adaptmed.heads.prompts import (
    Prompts,
    class_directions,
    class_prompts_for,
    label_directions,
    prompt_embedding,
    prompts_for,
    zero_shot_multiclass,
    zero_shot_multilabel,
)
from adaptmed.metrics.retrieval import first_positive_ranks
from adaptmed.study.classification.rows import StudyRows
from adaptmed.study.statistics import Cell, Truth, retrieval_records
from adaptmed.tasks.retrieval.sets import RetrievalSets, retrieve


@dataclass(frozen=True)
class PromptEmbeddings:
    """Prompts in the adaptor's space.

    Attributes:
        positive: One vector per label ("there is ..."), or per class.
        negative: One vector per label ("no ..."); ``None`` for classes.
    """

    positive: Float[Tensor, "output width"]
    negative: Float[Tensor, "output width"] | None

    @property
    def directions(self) -> Float[Tensor, "output width"]:
        """Which way of the embedding space speaks for each label or class."""
        if self.negative is None:
            return class_directions(self.positive)
        return label_directions(self.positive, self.negative)


def embed_prompts(
    adaptor: Adaptor | None, truth: Truth, prompts: Prompts | None
) -> tuple[PromptEmbeddings | None, str | None]:
    """Embed every label's or class's prompts; without a text encoder there are none, and the reason is returned."""
    if adaptor is None:
        return None, "the study has no adaptor."
    if not adaptor.fusion.reads_texts:
        return None, "the adaptor reads images alone."
    try:
        adaptor.encoders.load_text()
    except AdaptmedError as error:
        return None, str(error)

    def one(texts: tuple[str, ...]) -> Tensor:
        with torch.inference_mode():
            return prompt_embedding(adaptor.embed_texts(list(texts)).cpu())

    if truth.kind == "multiclass":
        return PromptEmbeddings(torch.stack([one(class_prompts_for(n, prompts)) for n in truth.names]), None), None
    pairs = [prompts_for(name, prompts) for name in truth.names]
    positive = torch.stack([one(says) for says, _ in pairs])
    return PromptEmbeddings(positive, torch.stack([one(denies) for _, denies in pairs])), None


def zero_shot_cell(fusion: Fusion, bank: Bank, rows: StudyRows, prompts: PromptEmbeddings) -> Cell:
    """Classify the test images by their similarity to the prompts."""
    images = torch.from_numpy(embed_images(fusion, bank, rows.test))
    temperature = 1 / fusion.scale().item()
    if prompts.negative is None:
        probabilities = zero_shot_multiclass(images, prompts.positive, temperature)
    else:
        probabilities = zero_shot_multilabel(images, prompts.positive, prompts.negative, temperature)
    none = dict.fromkeys(rows.truth.names, 0)
    return Cell("zero-shot", 0.0, 0, probabilities.double().numpy(), {}, 0, none, 0, 0.0)


def paired_rows(bank: Bank, rows: StudyRows) -> Int[np.ndarray, " n"]:
    """Test images that have a text; retrieval needs no labels."""
    return rows.judged[bank.rows["text_index"].to_numpy()[rows.judged] >= 0]


def retrieval_sets(fusion: Fusion, bank: Bank, rows: StudyRows) -> RetrievalSets | None:
    """Embed the test images, labelled or not, and their distinct texts.

    Args:
        fusion: Embeds both.
        bank: Their Tokens.
        rows: The study's rows.

    Returns:
        ``None`` when no test image has a text, or the fusion reads images alone.
    """
    paired = paired_rows(bank, rows)
    if not len(paired) or not fusion.reads_texts:
        return None
    images, texts = (embed_rows(fusion, bank, paired, modality=side) for side in ("image", "text"))
    return retrieve(images, texts, torch.from_numpy(bank.rows["text_index"].to_numpy(np.int64)[paired]))


def retrieval_of(
    fusions: Mapping[str, Fusion], bank: Bank, rows: StudyRows, *, replicates: int
) -> list[dict[str, Any]]:
    """Retrieve reports by images and images by reports, for every arm that has both in one space."""
    found: list[dict[str, Any]] = []
    paired = paired_rows(bank, rows)
    patients = bank.rows["patient"].astype(str).to_numpy(object)[paired]
    for arm, fusion in fusions.items():
        sets = retrieval_sets(fusion, bank, rows)
        if sets is None:
            continue
        first = [int(np.flatnonzero(sets.image_group == group)[0]) for group in sets.text_group]
        ways = (
            ("image to text", sets.images, sets.texts, sets.image_group, sets.text_group, patients),
            ("text to image", sets.texts, sets.images, sets.text_group, sets.image_group, patients[first]),
        )
        for direction, queries, gallery, asked, there, who in ways:
            ranks = first_positive_ranks(queries, gallery, asked, there)
            found += retrieval_records(
                ranks, who, arm=arm, direction=direction, n_gallery=len(gallery), replicates=replicates
            )
    return found
