"""What a pre-training works on: the pairs it reads, where it starts, what it trains, and the batches it is given."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from os import cpu_count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from adaptmed.adaptor.model import Adaptor
from adaptmed.bank import Bank, BankLoader
from adaptmed.data.images import from_bytes
from adaptmed.encoders import Words, words_of
from adaptmed.errors import InputError, sentence
from adaptmed.fusion import CoFusion
from adaptmed.fusion.config import to_json
from adaptmed.layers.draws import step_seed
from adaptmed.lora.settings import Tunable
from adaptmed.methods import Method
from adaptmed.pretext.word import TiedWordHead
from adaptmed.pretraining.masking import Masker, Source, cell_px, masked_source, stored_views
from adaptmed.pretraining.module import Pretraining
from adaptmed.pretraining.pretext import build_pretext
from adaptmed.pretraining.pretext_file import load_pretext
from adaptmed.runs.same_tokens import check_tokens
from adaptmed.training.encoders import Online, OnlineEncoders
from adaptmed.training.pixels import PixelReader
from adaptmed.types import Batch

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class PretrainJob:
    """One pre-training or calibration.

    Attributes:
        bank: Image-text pairs.
        method: Fusion, losses and optimiser settings.
        train: Row numbers of the pairs it is trained on.
        validate: Row numbers of the pairs that decide when to stop; may be empty.
        seed: Of everything random.
        online: Which encoders are trained in the loop, or ``None``.
        start: Run or saved adaptor whose fusion it starts from, or ``None`` for a fresh one.
        pretext: Run whose pretext modules it goes on with, or ``None`` for fresh ones.
    """

    bank: Bank
    method: Method
    train: Rows
    validate: Rows
    seed: int
    online: Online | None = None
    start: Path | None = None
    pretext: Path | None = None

    @cached_property
    def adaptor(self) -> Adaptor:
        """The adaptor that is trained, as it starts, with the encoders in memory that training needs."""
        adaptor = fresh_adaptor(self.bank, self.method, self.train, seed=self.seed)
        if self.start is not None:
            _take_fusion(adaptor, self.bank, self.start)
        if self.online is not None and self.online.image_lora is not None:
            lora = self.online.image_lora
            adaptor.encoders.attach_lora("image", lora, seed=step_seed(self.seed, -3))
        if self.online is not None and self.online.text_lora is not None:
            adaptor.encoders.attach_lora("text", self.online.text_lora, seed=step_seed(self.seed, -4))
        return adaptor

    @cached_property
    def source(self) -> Source | None:
        """Where masked images come from; ``None`` where the method hides nothing."""
        masking = self.method.masking
        if masking is None:
            return None
        return masked_source(self.bank, self.adaptor.encoders, masking, tuned=self._tunes_images)

    @property
    def _tunes_images(self) -> bool:
        return self.online is not None and self.online.image_lora is not None

    def task(self, steps: int) -> Pretraining:
        """Build what Lightning trains in ``steps`` steps."""
        with torch.random.fork_rng():
            torch.manual_seed(step_seed(self.seed, -2))
            adaptor, method = self.adaptor, self.method
            online = None if self.online is None else OnlineEncoders(adaptor.encoders, self.online)
            options: dict[str, Any] = {"seed": self.seed, "steps": steps, "online": online}
            if method.masking is None or self.source is None:
                return Pretraining(adaptor.fusion, method, **options)
            text = adaptor.encoders.load_text()
            self._freeze_what_is_not_tuned()
            values, words = 3 * cell_px(self.bank) ** 2, words_of(text)
            pretext = build_pretext(method, adaptor.width, words=words, cell_values=values)
            masker = Masker(adaptor.encoders, method.masking, self.source)
            if self.pretext is not None:
                load_pretext(self.pretext, pretext)
            elif isinstance(pretext["words"], TiedWordHead):
                pretext["words"].start_at_frequencies(_word_counts(self.bank, self.train, words))
            freeze_unused(adaptor.fusion, method)
            return Pretraining(adaptor.fusion, method, pretext=pretext, masker=masker, **options)

    def _freeze_what_is_not_tuned(self) -> None:
        """LoRA that a bank's encoders came with is no part of this training."""
        encoders, online = self.adaptor.encoders, self.online
        sides = [(encoders.image, online and online.image_lora), (encoders.text, online and online.text_lora)]
        for encoder, tuned in sides:
            if isinstance(encoder, Tunable) and encoder.lora is not None and not tuned:
                for parameter in encoder.lora.parameters():
                    parameter.requires_grad_(requires_grad=False)

    def batches(
        self, batch_size: int, part: slice, position: Callable[[], int]
    ) -> tuple[BankLoader, BankLoader | None]:
        """Build the batches of training, from where the run stands, and of validation, where there are pairs for it.

        Args:
            batch_size: Pairs per batch, over all processes.
            part: Which of every batch are read by this process.
            position: Batches behind the run.
        """
        shared: dict[str, Any] = {"batch_size": batch_size, "part": part, "more": self._more()}
        moved, still = self._pixels(self.seed), self._pixels(None)
        options: dict[str, Any] = {"seed": self.seed, "drop_last": True, "position": position}
        trained = BankLoader(self.bank, self.train, pixels=moved, **options, **shared)
        if not len(self.validate):
            return trained, None
        return trained, BankLoader(self.bank, self.validate, shuffle=False, pixels=still, **shared)

    def _more(self) -> Callable[[Batch, int], Batch] | None:
        """Return what adds masked views and labels to a batch, where the method wants them."""
        steps: list[Callable[[Batch, int], Batch]] = []
        if self.source == "bank":
            steps.append(stored_views(self.bank, seed=step_seed(self.seed, -5)))
        if self.method.negatives_by_label:
            steps.append(lambda batch, _: replace(batch, labels=_known_labels(self.bank, batch.rows.numpy())))

        def add(batch: Batch, epoch: int) -> Batch:
            for step in steps:
                batch = step(batch, epoch)
            return batch

        return add if steps else None

    def _pixels(self, seed: int | None) -> Callable[[Rows, int], Tensor] | None:
        """Return what reads pixels, changed at random by ``seed``; ``None`` where nothing needs them."""
        online, images = self.online, self.bank.info.images
        assert images is not None  # there are pairs
        if online is not None and online.image_lora is not None:
            draws = seed if online.augment else None
            return PixelReader(self.bank, images.preprocessing, seed=draws, workers=online.workers)
        if self.method.masking is None:
            return None
        if images.pixels:
            return self._stored_pixels
        return PixelReader(self.bank, images.preprocessing, seed=None, workers=min(8, cpu_count() or 1))

    def _stored_pixels(self, rows: Rows, epoch: int) -> Float[Tensor, "batch 3 height width_px"]:
        del epoch
        assert self.bank.info.images is not None
        items = [self.bank.items_of(int(row))[0] for row in rows]
        return from_bytes(self.bank.item_pixels(items), self.bank.info.images.preprocessing)


def _known_labels(bank: Bank, rows: Rows) -> Float[Tensor, "n label"]:
    """Return labels, and classes as one more of them; NaN where not known."""
    labels = bank.labels(rows)
    if bank.info.class_column is None:
        return labels
    numbers = bank.class_numbers(rows).float()
    return torch.cat([labels, numbers.masked_fill(numbers < 0, torch.nan)[:, None]], dim=1)


def _word_counts(bank: Bank, rows: Rows, words: Words) -> Int[Tensor, " word"]:
    """How often each word stands in the texts of ``rows``; the encoder's special tokens, never hidden, count for 0."""
    counts = torch.zeros(len(words.embeddings), dtype=torch.long)
    for some in np.array_split(rows, -(-len(rows) // 1024)):
        ids, valid = bank.input_ids(some)
        counts += torch.bincount(ids[valid].long(), minlength=len(counts))
    counts[list(words.special_ids)] = 0
    return counts


def fresh_adaptor(bank: Bank, method: Method, rows: Rows, *, seed: int) -> Adaptor:
    """The untrained adaptor a run starts from: fresh weights by seed, input statistics of ``rows``."""
    with torch.random.fork_rng():
        torch.manual_seed(step_seed(seed, -1))
        adaptor = Adaptor.from_bank(
            bank,
            fusion=method.fusion,
            width=method.width,
            layers=method.layers,
            heads=method.heads,
            dropout=method.dropout,
            faithful=method.faithful,
        )
    adaptor.standardise(bank, rows)
    return adaptor


def freeze_unused(fusion: nn.Module, method: Method) -> None:
    """Freeze what a method that neither matches nor contrasts leaves out: the poolers, and image layers none reads.

    Such a method goes on with what another has trained (calibration); its own weights would stay random.
    """
    if method.weight_matching > 0 or method.weight_contrastive > 0 or not isinstance(fusion, CoFusion):
        return
    fusion.image_pool.requires_grad_(requires_grad=False)
    fusion.text_pool.requires_grad_(requires_grad=False)
    layer = None if method.masking is None else method.masking.patch_layer
    if layer is not None and layer < fusion.config.layers:  # words read the image as the last layer but one leaves it
        fusion.image_layers[-1].requires_grad_(requires_grad=False)


def _take_fusion(adaptor: Adaptor, bank: Bank, start: Path) -> None:
    """Give an adaptor the trained fusion of another run on the same Tokens.

    Raises:
        InputError: If the run's fusion has another shape, or it was trained on other Tokens.
    """
    trained = Adaptor.from_pretrained(start, load_encoders=False)
    check_tokens(bank, trained, start)
    ours, theirs = (to_json(either.fusion.config) for either in (adaptor, trained))
    both = [name for name in ours if name in theirs]
    other = [f"{name}: {theirs[name]} there, {ours[name]} here" for name in both if ours[name] != theirs[name]]
    if other:
        fix = "Choose the method and size that it was trained with."
        raise InputError(sentence(str(start), expected="a fusion of this shape", got="; ".join(other), fix=fix))
    adaptor.fusion.load_state_dict(trained.fusion.state_dict())
