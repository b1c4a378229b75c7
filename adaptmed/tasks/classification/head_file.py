"""The head of an image classifier on disk: its tensors, and what its inputs and its logits are."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from adaptmed.heads.linear import LinearHead, paper_head
from adaptmed.tasks.head_file import load_head, save_head

NAME = "head"


@dataclass(frozen=True, kw_only=True)
class HeadFacts:
    """What a head reads and predicts.

    Attributes:
        names: Of the labels or classes, one per logit.
        multiclass: Whether these are classes that exclude each other: softmax instead of sigmoid.
        left_out: Labels or classes without a logit, with the reason.
        variant: Which features it reads, as in ``image_features``.
        width: Width of these features.
        hidden: Width of the hidden layer; ``None`` for a linear head.
    """

    names: tuple[str, ...]
    multiclass: bool
    left_out: dict[str, str]
    variant: str
    width: int
    hidden: int | None


def save_label_head(folder: Path, head: nn.Module, facts: HeadFacts) -> None:
    """Write a head; the facts last."""
    save_head(folder, NAME, head.state_dict(), asdict(facts))


def load_label_head(folder: Path) -> tuple[nn.Module, HeadFacts]:
    """Read the head of a fine-tuned run, in evaluation mode.

    Raises:
        InputError: There is none, or it is damaged.
    """
    return load_head(folder, NAME, _built, task="classification")


def _built(values: Mapping[str, Any], tensors: dict[str, Tensor]) -> tuple[nn.Module, HeadFacts]:
    facts = HeadFacts(**{**values, "names": tuple(values["names"])})
    outputs, hidden = len(facts.names), facts.hidden
    head = LinearHead(facts.width, outputs) if hidden is None else paper_head(facts.width, outputs, hidden=hidden)
    head.load_state_dict(tensors)
    return head.eval(), facts
