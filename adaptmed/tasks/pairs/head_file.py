"""A head of pairs on disk: its tensors, and beside them what its logits are."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from adaptmed.errors import InputError, sentence
from adaptmed.files import write_tensors, write_text_whole
from adaptmed.heads.outputs import Outputs
from adaptmed.tasks.pairs.answers import AnswerVocabulary
from adaptmed.tasks.pairs.model import Beside, PairClassifier, pair_head
from adaptmed.tasks.pairs.settings import PairTask

FACTS, TENSORS = "pair_head.json", "pair_head.safetensors"
_BESIDE = "beside."


@dataclass(frozen=True, kw_only=True)
class PairHeadFacts:
    """What a head of pairs says.

    Attributes:
        task: It was trained for.
        width: Of the joint vector it reads.
        names: Answers, labels or classes, one per logit.
        majority: Of answers: the most frequent one in training.
        multiclass: Of labels and classes: whether they exclude each other.
        left_out: Labels or classes without a logit, with the reason.
        beside: Widths of the image's and the text's Tokens, where what they say is added to the joint vector.
    """

    task: PairTask
    width: int
    names: tuple[str, ...]
    majority: str = ""
    multiclass: bool = True
    left_out: dict[str, str] = field(default_factory=dict)
    beside: tuple[int, int] | None = None

    @property
    def vocabulary(self) -> AnswerVocabulary:
        """The answers it can give."""
        return AnswerVocabulary(self.names, self.majority)

    def outputs(self, names: tuple[str, ...]) -> Outputs:
        """Which labels or classes of a bank it tells apart, in the bank's order.

        Args:
            names: Of the bank; those it has never met have a reason.
        """
        unknown = {n: self.left_out.get(name, "not learnt") for n, name in enumerate(names) if name not in self.names}
        return Outputs(len(names), self.multiclass, unknown)


def save_pair_head(folder: Path, model: PairClassifier, facts: PairHeadFacts) -> None:
    """Write the head of a model and what stands beside its fusion; the facts last."""
    parts = {"": model.head, _BESIDE: model.beside}
    tensors = {
        f"{of}{name}": t for of, part in parts.items() if part is not None for name, t in part.state_dict().items()
    }
    write_tensors(folder / TENSORS, tensors)
    write_text_whole(folder / FACTS, json.dumps(asdict(facts), indent=2) + "\n")


def load_pair_head(folder: Path) -> tuple[nn.Module, Beside | None, PairHeadFacts]:
    """Read the head of a run on pairs and what stands beside its fusion, in evaluation mode.

    Raises:
        InputError: There is none.
    """
    if not (folder / FACTS).is_file():
        fix = "Name the run folder of `adaptmed finetune --task answering`, and run it to its end."
        raise InputError(sentence(str(folder), expected=f"a head in {FACTS}", got="none", fix=fix))
    values = json.loads((folder / FACTS).read_text())
    beside = tuple(values["beside"]) if values.get("beside") else None
    facts = PairHeadFacts(**{**values, "names": tuple(values["names"]), "beside": beside})
    tensors = load_file(folder / TENSORS)
    with torch.random.fork_rng(devices=[]):  # fresh weights are drawn and replaced
        head = pair_head(facts.width, len(facts.names))
    head.load_state_dict({name: tensor for name, tensor in tensors.items() if not name.startswith(_BESIDE)})
    if facts.beside is None:
        return head.eval(), None, facts
    shown = Beside(*facts.beside, facts.width // 2)
    shown.load_state_dict({name.removeprefix(_BESIDE): t for name, t in tensors.items() if name.startswith(_BESIDE)})
    return head.eval(), shown.eval(), facts
