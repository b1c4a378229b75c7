"""Questions about pictures with what every arm answered, as the report shows them."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class AnswerExample:
    """One test question.

    Attributes:
        picture: PNG bytes of the image; ``None`` where it cannot be drawn.
        question: As asked.
        answer: The true one.
        arms: Arm → its best answers, best first.
        right: Arm → whether its first answer is the true one.
    """

    picture: bytes | None
    question: str
    answer: str
    arms: Mapping[str, tuple[str, ...]]
    right: Mapping[str, bool]
