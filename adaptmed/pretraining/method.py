"""Method of pre-training: a fusion, terms and a schedule; and the protocol of a term."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, get_args, runtime_checkable

from jaxtyping import Float
from torch import Tensor, nn

from adaptmed.errors import InputError, sentence
from adaptmed.fusion.settings import FusionSettings
from adaptmed.pretraining.step import Step
from adaptmed.pretraining.views import Hidden, Needs, Sizes
from adaptmed.training.settings import Schedule
from adaptmed.types import Side

Size = Literal["light", "paper"]


@runtime_checkable
class Term(Protocol):
    """One objective of a method: a frozen dataclass of its settings, with the module it trains and its loss.

    Attributes:
        name: Name of the term, of its loss and of its module.
        weight: Weight of its loss; a method leaves out a term whose weight is 0.
        hides: What it hides of one side, for the views of all terms; ``None`` where it hides nothing itself.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    name: ClassVar[str]

    @property
    def weight(self) -> float:
        """Weight of its loss."""
        ...

    @property
    def hides(self) -> Hidden | None:
        """What it hides of one side."""
        ...

    def needs(self, method: "Method") -> Needs:
        """Say what it reads, given the terms beside it.

        Raises:
            InputError: If the fusion or the terms beside it cannot give that.
        """

    def pretext(self, method: "Method", sizes: Sizes) -> nn.Module | None:
        """Build the module that only this term trains and only pre-training needs; ``None`` without one."""

    def losses(self, step: Step) -> dict[str, Float[Tensor, ""]]:
        """Compute its unweighted loss under its name, and what else is logged of a step."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """One paper on frozen encoders.

    Attributes:
        name: Name on the command line.
        size: ``light`` or ``paper``.
        fusion: Kind and sizes of the fusion.
        terms: What it is trained by, in the order in which losses are computed. Those of weight 0 are left out.
        schedule: Optimiser settings.

    Raises:
        InputError: If no term is left, two have one name, or a term lacks what it needs of the others.
    """

    name: str
    size: Size = "light"
    fusion: FusionSettings
    terms: tuple[Term, ...]
    schedule: Schedule

    def __post_init__(self) -> None:
        check_size(self.size)
        object.__setattr__(self, "terms", tuple(term for term in self.terms if term.weight > 0))
        names = [term.name for term in self.terms]
        if not names or len(set(names)) < len(names):
            expected, got = "at least one term, each of them once", ", ".join(names) or "none with a weight above 0"
            raise InputError(sentence("terms", expected=expected, got=got, fix="Give one of them a weight above 0."))
        decays = {need.teacher_decay for need in self.needs.values()} - {None}
        if len(decays) > 1:
            fix = "Give all terms that a teacher teaches the same: there is one teacher."
            raise InputError(sentence("teacher_decay", expected="one decay", got=sorted(map(str, decays)), fix=fix))

    @property
    def needs(self) -> dict[str, Needs]:
        """What every term asks for."""
        return {term.name: term.needs(self) for term in self.terms}

    @property
    def weights(self) -> dict[str, float]:
        """Weight of every loss by the name of its term."""
        return {term.name: term.weight for term in self.terms}

    @property
    def hidden(self) -> tuple[Hidden, ...]:
        """Everything that is hidden in some view."""
        views = [view for need in self.needs.values() for view in need.views]
        return tuple(
            dict.fromkeys(seen for view in views for seen in (view.text, view.image) if isinstance(seen, Hidden))
        )

    @property
    def teacher_decay(self) -> float | None:
        """Decay of the teacher; ``None`` where there is none."""
        return next((d for need in self.needs.values() if (d := need.teacher_decay) is not None), None)

    @property
    def reads_texts(self) -> bool:
        """Whether a term reads texts; else the adaptor needs no text encoder."""
        return any(need.texts for need in self.needs.values())

    @property
    def reads_labels(self) -> bool:
        """Whether a term reads labels."""
        return any(need.labels for need in self.needs.values())

    @property
    def reads_patients(self) -> bool:
        """Whether a term reads whose images they are."""
        return any(need.patients for need in self.needs.values())

    def term(self, name: str) -> Any:
        """Return the settings of a term, or ``None`` where the method has no such term."""
        return next((term for term in self.terms if term.name == name), None)

    def hiding(self, side: Side) -> Hidden | None:
        """What the terms hide of a side; the first one decides."""
        hides = [term.hides for term in self.terms]
        return next((hidden for hidden in hides if hidden is not None and hidden.side == side), None)


def check_size(size: str) -> None:
    """Refuse a size that no method has.

    Raises:
        InputError: If it is one.
    """
    if size not in get_args(Size):
        raise InputError(sentence("size", expected="'light' or 'paper'", got=repr(size), fix="Choose one."))
