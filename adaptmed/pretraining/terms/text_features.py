"""Text feature term: a teacher's features of a text's tokens, predicted from the text with words hidden."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from adaptmed.objectives.reconstruction import text_feature_loss
from adaptmed.pretext.feature import TextFeatureHead
from adaptmed.pretraining.beside import require_term
from adaptmed.pretraining.method import Method
from adaptmed.pretraining.step import Step
from adaptmed.pretraining.views import Needs, Sizes, check_decay, check_weight


@dataclass(frozen=True, kw_only=True)
class TextFeatures:
    """Distance of the features of a text's tokens, hidden or not, to those of a teacher that sees the whole pair.

    Attributes:
        weight: Weight of its loss; 0 leaves it, its head and its teacher out.
        teacher_decay: Per step, of the average of past students that is the teacher.
        faithful: Compare features as the released code does (see ``adaptmed.pretext.feature``).

    Raises:
        InputError: If a number lies outside its range.
    """

    name: ClassVar[str] = "text_features"
    hides: ClassVar[None] = None
    weight: float = 0.5
    teacher_decay: float = 0.995
    faithful: bool = False

    def __post_init__(self) -> None:
        check_weight("text_features.weight", self.weight)
        check_decay("text_features.teacher_decay", self.teacher_decay)

    def needs(self, method: Method) -> Needs:
        """The view of the word term, and a teacher."""
        words = require_term(method, self.name, needed="words")
        return Needs(views=words.needs(method).views, teacher_decay=self.teacher_decay)

    def pretext(self, method: Method, sizes: Sizes) -> TextFeatureHead:
        """Build the head from the student's tokens to the teacher's."""
        del method
        return TextFeatureHead(sizes.width, faithful=self.faithful)

    def losses(self, step: Step) -> dict[str, Float[Tensor, ""]]:
        """Return ``text_features``."""
        [view] = step.views[self.name]
        student, (_, teacher) = step.stream(view), step.teacher
        predicted, target = step.pretext[self.name](student.values, teacher.values)
        loss = text_feature_loss(predicted, target, student.valid, faithful=self.faithful)
        if not self.faithful:
            return {"text_features": step.cut.mean_of(loss, student.valid.sum())}
        items, length = student.valid.shape
        # The released loss counts padding: that of the whole batch, which is zeros on both sides. Every process asks
        # for the longest text, so that none waits.
        longest = step.cut.largest(length)
        count = torch.tensor(items * longest, device=loss.device)
        return {"text_features": step.cut.mean_of(loss * (length / longest), count)}
