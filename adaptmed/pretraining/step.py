"""Step of pre-training as its terms see it: a batch, every pass over it made once, and what its teacher copies."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import nn

from adaptmed.fusion import Fusion
from adaptmed.fusion.base import Streams
from adaptmed.layers.draws import step_seed
from adaptmed.pretraining.masking import MaskedCells, MaskedWords, Masker
from adaptmed.pretraining.views import Hidden, Seen, View
from adaptmed.training.cut_batch import ALONE, CutBatch
from adaptmed.training.encoders import OnlineEncoders
from adaptmed.types import Batch, Tokens

Teach = Callable[[], tuple[Tokens, Tokens]]
"""Runs the teacher: its fused image and text Tokens of the whole pairs."""


@dataclass
class Step:
    """One batch, and what the terms of a method read of it.

    Attributes:
        fusion: The trainable part.
        pretext: Modules of the terms, by name.
        batch: This process's part of the batch, with the Tokens of whole images and texts.
        seed: Of what is random in this step.
        cut: How the batch lies over processes; every process computes the loss of the whole batch.
        views: Streams that each term reads, by the term's name.
        masker: Hides and encodes; ``None`` where no term hides anything.
        teach: Runs the teacher; ``None`` without one.
    """

    fusion: Fusion
    pretext: nn.ModuleDict
    batch: Batch
    seed: int
    cut: CutBatch = ALONE
    views: Mapping[str, tuple[View, ...]] = field(default_factory=dict)
    masker: Masker | None = None
    teach: Teach | None = None
    _done: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    def stream(self, view: View) -> Tokens:
        """Return the Tokens of a view; the first who asks runs its pass, with the layers that any term reads."""
        image, text = self._pass(view.image, view.text)[view.layer]
        tokens = image if view.side == "image" else text
        assert tokens is not None  # a view reads a side that its pass sees
        return tokens

    def masked_cells(self, hidden: Hidden) -> MaskedCells:
        """Return the image Tokens with cells hidden."""
        return self.once(hidden, lambda: self._masker.cells(self.batch, hidden, step_seed(self.seed, 4)))

    def masked_words(self, hidden: Hidden) -> MaskedWords:
        """Return the text Tokens with words hidden, and these words."""
        return self.once(hidden, lambda: self._masker.words(self.batch, hidden, step_seed(self.seed, 3)))

    @cached_property
    def teacher(self) -> tuple[Tokens, Tokens]:
        """The teacher's fused image and text Tokens of the whole pairs."""
        assert self.teach is not None  # the method has a teacher where a term needs one
        return self.teach()

    def once(self, key: object, make: Callable[[], Any]) -> Any:
        """Return what was made under this key in this step, or make it."""
        if key not in self._done:
            self._done[key] = make()
        return self._done[key]

    def _pass(self, image: Seen, text: Seen) -> dict[int | None, tuple[Tokens | None, Tokens | None]]:
        def run() -> dict[int | None, tuple[Tokens | None, Tokens | None]]:
            every = [view for views in self.views.values() for view in views]
            asked = dict.fromkeys(view.layer for view in every if (view.image, view.text) == (image, text))
            assert isinstance(self.fusion, Streams)  # the method says so
            layers = [self.fusion.layer_count if layer is None else layer for layer in asked]
            sides = self._seen(image, "image"), self._seen(text, "text")
            return dict(zip(asked, self.fusion.streams_at(layers, *sides), strict=True))

        return self.once((image, text), run)

    def _seen(self, seen: Seen, side: str) -> Tokens | None:
        if isinstance(seen, Hidden):
            return self.masked_cells(seen).image if seen.side == "image" else self.masked_words(seen).text
        if seen is None:
            return None
        return self.batch.image if side == "image" else self.batch.text

    @property
    def _masker(self) -> Masker:
        assert self.masker is not None  # it is there where a term hides something
        return self.masker


def both_sides(batch: Batch) -> tuple[Tokens, Tokens]:
    """Return the image and the text Tokens of a batch of pairs; the loader takes pairs only."""
    assert batch.image is not None
    assert batch.text is not None
    return batch.image, batch.text


class Student(nn.Module):
    """What a teacher is a copy of: the fusion, and the encoders that are trained in the loop.

    Args:
        fusion: Of kind ``co``.
        online: ``None`` where the bank is all there is of the encoders; the teacher then costs one pass of the fusion.
    """

    def __init__(self, fusion: Streams, online: OnlineEncoders | None) -> None:
        super().__init__()
        self.fusion, self.online = fusion, online

    def forward(self, batch: Batch) -> tuple[Tokens, Tokens]:
        """Return the fused image and text Tokens of whole pairs."""
        image, text = both_sides(batch if self.online is None else self.online(batch))
        return self.fusion.streams(image, text)
