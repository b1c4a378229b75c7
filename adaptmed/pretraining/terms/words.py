"""Word term: words that were hidden before the text encoder, read from the fusion."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from adaptmed.objectives.masked import masked_word_loss
from adaptmed.pretext.word import TiedWordHead, WordHead
from adaptmed.pretraining.beside import hidden_beside, require_streams
from adaptmed.pretraining.method import Method
from adaptmed.pretraining.step import Step
from adaptmed.pretraining.views import Hidden, Needs, Seen, Sizes, View, check_share, check_weight


@dataclass(frozen=True, kw_only=True)
class HiddenWords:
    """Cross-entropy of hidden words.

    Attributes:
        weight: Weight of its loss; 0 leaves it and its head out.
        share: Share of a text's words that are hidden.
        whole: Hide all pieces of a word together.
        tied: Compare with the text encoder's own frozen word embeddings, instead of a decoder of its own.
        beside: What the words are read beside: the ``whole`` image (M3AE), or the ``hidden`` one of the patch term, in
            one pass with it (UMD).

    Raises:
        InputError: If a number lies outside its range.
    """

    name: ClassVar[str] = "words"
    weight: float = 1.0
    share: float = 0.15
    whole: bool = True
    tied: bool = True
    beside: Literal["whole", "hidden"] = "whole"

    def __post_init__(self) -> None:
        check_weight("words.weight", self.weight)
        check_share("words.share", self.share, fix="Try 0.15.")

    @property
    def hides(self) -> Hidden:
        """Words of the text."""
        return Hidden("text", self.share, self.whole)

    def needs(self, method: Method) -> Needs:
        """The text's stream after the last layer, in which words are hidden."""
        require_streams(method, self.name)
        image: Seen = "whole" if self.beside == "whole" else hidden_beside(method, self.name, "image")
        return Needs(views=(View("text", image, self.hides),))

    def pretext(self, method: Method, sizes: Sizes) -> TiedWordHead | WordHead:
        """Build the head from a token to one logit per word; a tied one starts at the words' frequencies."""
        del method
        assert sizes.words is not None  # whoever hides words has a text encoder
        if not self.tied:
            return WordHead(sizes.width, len(sizes.words.embeddings))
        head = TiedWordHead(sizes.width, sizes.words.embeddings)
        if sizes.word_counts is not None:
            head.start_at_frequencies(sizes.word_counts)
        return head

    def losses(self, step: Step) -> dict[str, Float[Tensor, ""]]:
        """Return ``words``, and ``word_accuracy``: the share of hidden words that were found."""
        [view] = step.views[self.name]
        masked = step.masked_words(self.hides)
        hidden, head = masked.hidden, step.pretext[self.name]
        # Logits of hidden words alone: those of every token would take batch × token × vocabulary.
        logits, targets = head(step.stream(view).values[hidden]).float(), masked.targets[hidden]
        right = (logits.argmax(1) == targets).float().mean() if len(targets) else logits.sum() * 0.0
        loss, count = masked_word_loss(logits, targets), hidden.sum()
        return {"words": step.cut.mean_of(loss, count), "word_accuracy": step.cut.mean_of(right.detach(), count)}
