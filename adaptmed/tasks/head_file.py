"""A fine-tuned head on disk: its tensors, and beside them what its inputs and its logits are."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from adaptmed.errors import InputError, sentence
from adaptmed.files import write_tensors, write_text_whole
from adaptmed.heads.linear import LinearHead, paper_head

FACTS, TENSORS = "head.json", "head.safetensors"


@dataclass(frozen=True, kw_only=True)
class HeadFacts:
    """What a head reads and says.

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


def save_head(folder: Path, head: nn.Module, facts: HeadFacts) -> None:
    """Write a head; the facts last."""
    write_tensors(folder / TENSORS, head.state_dict())
    write_text_whole(folder / FACTS, json.dumps(asdict(facts), indent=2) + "\n")


def load_head(folder: Path) -> tuple[nn.Module, HeadFacts]:
    """Read the head of a fine-tuned run, in evaluation mode.

    Raises:
        InputError: There is none.
    """
    if not (folder / FACTS).is_file():
        fix = "Name the run folder of `adaptmed finetune`, and run it to its end."
        raise InputError(sentence(str(folder), expected=f"a head in {FACTS}", got="none", fix=fix))
    values = json.loads((folder / FACTS).read_text())
    facts = HeadFacts(**{**values, "names": tuple(values["names"])})
    with torch.random.fork_rng(devices=[]):  # fresh weights are drawn and replaced
        head = _built(facts.width, len(facts.names), facts.hidden)
    head.load_state_dict(load_file(folder / TENSORS))
    return head.eval(), facts


def _built(width: int, outputs: int, hidden: int | None) -> nn.Module:
    return LinearHead(width, outputs) if hidden is None else paper_head(width, outputs, hidden=hidden)
