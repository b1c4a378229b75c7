"""Views of a pair that terms ask for, what else they need, and the sizes that their modules are built for."""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Int
from torch import Tensor

from adaptmed.encoders import Words
from adaptmed.errors import InputError, sentence
from adaptmed.types import Side


@dataclass(frozen=True)
class Hidden:
    """What of one side is hidden before its encoder.

    Attributes:
        side: Whose parts are hidden: cells of the image or words of the text.
        share: Share of them, above 0 and below 1.
        whole: Of a text: hide all pieces of a word together.
    """

    side: Side
    share: float
    whole: bool = False


Seen = Hidden | Literal["whole"] | None
"""What the fusion sees of a side: all of it, what is left of it, or none of it."""


@dataclass(frozen=True)
class View:
    """A stream of the fusion, after one of its passes.

    Views that see the same of both sides are read from one pass, whoever asks for them.

    Attributes:
        side: Whose stream is read.
        image: What the pass sees of the image.
        text: What it sees of the text.
        layer: Layer that the stream is read after; ``None`` is the last.
    """

    side: Side
    image: Seen
    text: Seen
    layer: int | None = None


@dataclass(frozen=True)
class Needs:
    """What a term asks of a step and of a bank, beside the whole tokens of a batch.

    Attributes:
        views: Streams it reads.
        texts: Whether it reads texts.
        embeddings: Whether it reads the fusion's embeddings or joint vector; where no term does, the layers behind the
            streams are frozen.
        labels: Whether it reads labels.
        patients: Whether it reads whose images they are.
        teacher_decay: Of the average of past students that it is taught by; ``None`` without a teacher.
    """

    views: tuple[View, ...] = ()
    texts: bool = True
    embeddings: bool = False
    labels: bool = False
    patients: bool = False
    teacher_decay: float | None = None


@dataclass(frozen=True)
class Sizes:
    """What is known of a fusion and of its bank when the modules of terms are built.

    Attributes:
        width: Width of the fusion.
        words: Vocabulary of the text encoder; ``None`` where no word is hidden.
        word_counts: How often each word stands in the training texts; ``None`` where trained modules
            are loaded.
        cell_values: Values per cell, ``side² × 3``; ``None`` where no cell is hidden.
    """

    width: int
    words: Words | None = None
    word_counts: Int[Tensor, " word"] | None = None
    cell_values: int | None = None


def check_share(name: str, value: float, *, ends: bool = False, fix: str) -> None:
    """Refuse what is no share.

    Args:
        name: Of the setting.
        value: Its value.
        ends: Whether 0 and 1 are allowed.
        fix: The way out.

    Raises:
        InputError: If so.
    """
    if not (0 <= value <= 1 if ends else 0 < value < 1):
        expected = "a share in [0, 1]" if ends else "a share above 0 and below 1"
        raise InputError(sentence(name, expected=expected, got=value, fix=fix))


def check_weight(name: str, value: float) -> None:
    """Refuse a negative weight.

    Raises:
        InputError: If so.
    """
    if not value >= 0:
        raise InputError(sentence(name, expected="0 or more", got=value, fix="Pass 0 to leave the term out."))


def check_decay(name: str, value: float) -> None:
    """Refuse what is no decay of an average.

    Raises:
        InputError: If so.
    """
    if not 0 <= value < 1:
        raise InputError(sentence(name, expected="a decay in [0, 1)", got=value, fix="Try 0.995."))
