"""A head of pairs on disk: its tensors, and beside them what its logits are."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from adaptmed.heads.outputs import Outputs
from adaptmed.tasks.head_file import load_head, save_head
from adaptmed.tasks.pairs.answers import AnswerVocabulary
from adaptmed.tasks.pairs.kinds import Kinds
from adaptmed.tasks.pairs.model import Beside, PairClassifier, pair_head
from adaptmed.tasks.pairs.settings import PairTask

NAME = "pair_head"
_BESIDE, _KINDS = "beside.", "kinds."


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


class PairHead(NamedTuple):
    """A head of pairs, in evaluation mode, with what stands beside it."""

    head: nn.Module
    beside: Beside | None
    facts: PairHeadFacts
    kinds: Kinds | None


def save_pair_head(folder: Path, model: PairClassifier, facts: PairHeadFacts, kinds: Kinds | None) -> None:
    """Write the head of a model, the shortcut around its fusion and the kinds of questions; the facts last."""
    parts = {"": model.head, _BESIDE: model.beside, _KINDS: kinds}
    tensors = {
        f"{of}{name}": t for of, part in parts.items() if part is not None for name, t in part.state_dict().items()
    }
    save_head(folder, NAME, tensors, asdict(facts))


def load_pair_head(folder: Path) -> PairHead:
    """Read the head of a run on pairs with what stands beside it.

    Raises:
        InputError: There is none, or it is damaged.
    """
    return load_head(folder, NAME, _built, task="answering")


def _built(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> PairHead:
    widths = tuple(values["beside"]) if values.get("beside") else None
    facts = PairHeadFacts(**{**values, "names": tuple(values["names"]), "beside": widths})
    head = pair_head(facts.width, len(facts.names))
    plain = {name: tensor for name, tensor in tensors.items() if not name.startswith((_BESIDE, _KINDS))}
    head.load_state_dict(plain)
    beside = kinds = None
    if facts.beside is not None:
        beside = Beside(*facts.beside, facts.width // 2)
        beside.load_state_dict(_part(tensors, _BESIDE))
    if any(name.startswith(_KINDS) for name in tensors):
        kinds = Kinds(tensors[f"{_KINDS}weight"].shape[1], len(facts.names))
        kinds.load_state_dict(_part(tensors, _KINDS))
    return PairHead(head.eval(), None if beside is None else beside.eval(), facts, kinds)


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
