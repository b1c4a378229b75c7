"""What a pre-training works on: the pairs it reads, where it starts, what it trains, and the batches it is given."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from os import cpu_count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from adaptmed.adaptor.model import Adaptor
from adaptmed.bank import Bank, BankLoader
from adaptmed.data.images import from_bytes
from adaptmed.encoders import Words, words_of
from adaptmed.errors import InputError, sentence
from adaptmed.fusion import Fusion
from adaptmed.fusion.base import Streams
from adaptmed.fusion.config import to_json
from adaptmed.layers.draws import step_seed
from adaptmed.lora.settings import Tunable
from adaptmed.pretraining.masking import Masker, Source, cell_px, masked_source, stored_views
from adaptmed.pretraining.method import Method
from adaptmed.pretraining.module import Pretraining
from adaptmed.pretraining.pretext import build_pretext, load_pretext
from adaptmed.pretraining.views import Sizes
from adaptmed.runs.same_tokens import check_tokens
from adaptmed.training.encoders import Online, OnlineEncoders
from adaptmed.training.pixels import PixelReader
from adaptmed.types import Batch

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class PretrainJob:
    """One pre-training or calibration.

    Attributes:
        bank: What the terms read: image-text pairs, or images alone.
        method: Fusion, terms and optimiser settings.
        train: Row numbers that it is trained on.
        validate: Row numbers that decide when to stop; may be empty.
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
        """Where masked images come from; ``None`` where the method hides no cells."""
        cells = [hidden for hidden in self.method.hidden if hidden.side == "image"]
        if not cells:
            return None
        encoders, tuned = self.adaptor.encoders, self._tunes_images
        [found] = {masked_source(self.bank, encoders, hidden.share, tuned=tuned) for hidden in cells}
        return found

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
            if not method.hidden:
                return Pretraining(adaptor.fusion, method, **options)
            source, sizes = self.source, self._sizes()
            self._freeze_what_is_not_tuned()
            pretext = build_pretext(method, sizes)
            masker = Masker(adaptor.encoders, method.hidden, source)
            if self.pretext is not None:
                load_pretext(self.pretext, pretext)
            freeze_unused(adaptor.fusion, method)
            return Pretraining(adaptor.fusion, method, pretext=pretext, masker=masker, **options)

    def _sizes(self) -> Sizes:
        """Measure what the modules of the terms are shaped by; load the text encoder where words are hidden."""
        sides = {hidden.side for hidden in self.method.hidden}
        cells = 3 * cell_px(self.bank) ** 2 if "image" in sides else None
        if "text" not in sides:
            return Sizes(self.adaptor.width, cell_values=cells)
        words = words_of(self.adaptor.encoders.load_text())
        counts = _word_counts(self.bank, self.train, words) if self.pretext is None else None
        return Sizes(self.adaptor.width, words, counts, cells)

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
        """Return what adds masked views, labels and patients to a batch, where the method wants them."""
        steps: list[Callable[[Batch, int], Batch]] = []
        if self.source == "bank":
            steps.append(stored_views(self.bank, seed=step_seed(self.seed, -5)))
        if self.method.reads_labels:
            steps.append(lambda batch, _: replace(batch, labels=_known_labels(self.bank, batch.rows.numpy())))
        if self.method.reads_patients:
            numbers = torch.from_numpy(pd.factorize(self.bank.rows["patient"].astype(str))[0])
            steps.append(lambda batch, _: replace(batch, patient_group=numbers[batch.rows]))

        def add(batch: Batch, epoch: int) -> Batch:
            for step in steps:
                batch = step(batch, epoch)
            return batch

        return add if steps else None

    def _pixels(self, seed: int | None) -> Callable[[Rows, int], Tensor] | None:
        """Return what reads pixels, changed at random by ``seed``; ``None`` where nothing needs them."""
        online, images = self.online, self.bank.images
        if online is not None and online.image_lora is not None:
            draws = seed if online.augment else None
            return PixelReader(self.bank, images.preprocessing, seed=draws, workers=online.workers)
        if self.source is None:
            return None
        if images.pixels:
            return self._stored_pixels
        return PixelReader(self.bank, images.preprocessing, seed=None, workers=min(8, cpu_count() or 1))

    def _stored_pixels(self, rows: Rows, epoch: int) -> Float[Tensor, "batch 3 height width_px"]:
        del epoch
        items = [self.bank.items_of(int(row))[0] for row in rows]
        return from_bytes(self.bank.item_pixels(items), self.bank.images.preprocessing)


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
        fusion = method.fusion
        adaptor = Adaptor.from_bank(
            bank,
            fusion=fusion.kind,
            width=fusion.width,
            layers=fusion.layers,
            heads=fusion.heads,
            dropout=fusion.dropout,
            faithful=fusion.faithful,
        )
    adaptor.standardise(bank, rows)
    return adaptor


def freeze_unused(fusion: Fusion, method: Method) -> None:
    """Freeze what no term reads: where none reads embeddings, the poolers and the layers behind the streams.

    Such a method goes on with what another has trained (calibration); its own weights would stay random.
    """
    needs = method.needs.values()
    if isinstance(fusion, Streams) and not any(need.embeddings for need in needs):
        deepest: dict[str, int] = {}
        for view in (view for need in needs for view in need.views):
            layer = fusion.layer_count if view.layer is None else view.layer
            deepest[view.side] = max(layer, deepest.get(view.side, 0))
        fusion.freeze_unread(image=deepest.get("image"), text=deepest.get("text"))


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
