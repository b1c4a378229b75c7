"""What a task must provide to the one frame of fine-tuning and judging: its choices, and the job they make."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int
from torch import nn

from adaptmed.adaptor.model import Adaptor
from adaptmed.bank import Bank
from adaptmed.cohort.division import Division
from adaptmed.cohort.rows import Reject
from adaptmed.lora import LoRA
from adaptmed.runs.precision import Precision
from adaptmed.training.work import Work
from adaptmed.types import Side

Noun = Literal["images", "pairs"]
Reading = Callable[[str, int, int], None]
"""Called while files are opened: with what, how many are done, and how many there are."""


@dataclass(frozen=True, kw_only=True)
class Before:
    """What is known before a fine-tuning begins.

    Attributes:
        seen: Digests of the patients that pre-training has read; ``None`` when that is not known.
        world: How many processes work together.
    """

    seen: frozenset[str] | None = None
    world: int = 1


@runtime_checkable
class Job(Protocol):
    """One fine-tuning: its rows, what it trains, and how it is judged."""

    @property
    def adaptor(self) -> Adaptor:
        """Without encoders in memory, until ``work`` puts what is tuned into it."""
        ...

    def division(self) -> Division:
        """Train, validation and test rows, once ``open`` has run."""
        ...

    @property
    def rejects(self) -> Sequence[Reject] | None:
        """Rows that are left out; ``None`` where the task lists them elsewhere."""
        ...

    def label_names(self) -> tuple[str, ...]:
        """Labels or classes that the adaptor's record names."""
        ...

    def open(self, out: Path, reading: Reading) -> None:
        """Read what must be read into the run folder before rows are known."""
        ...

    def work(self, log_folder: Path | None) -> Work | None:
        """Put a head on the adaptor and plan its training; ``None`` where there is nothing to train."""
        ...

    def network(self) -> nn.Module:
        """What ``work`` has put together."""
        ...

    def judge(self, out: Path, device: str) -> dict[str, Any]:
        """Score the test rows, the tuned model beside its baselines; JSON values by arm."""
        ...

    def facts(self) -> dict[str, Any]:
        """What the result says beside the scores."""
        ...

    def save_head(self, out: Path) -> None:
        """Write the head into the run folder."""
        ...


@runtime_checkable
class Task(Protocol):
    """The choices of one fine-tuning; the frame asks it for everything that differs between tasks."""

    @property
    def task(self) -> str:
        """Its name on the command line."""
        ...

    @property
    def fraction(self) -> float:
        """Share of the training patients."""
        ...

    @property
    def noun(self) -> Noun:
        """What it is judged on."""
        ...

    @property
    def reads_texts(self) -> bool:
        """Whether the texts of the bank are read."""
        ...

    @property
    def shares_batches(self) -> bool:
        """Whether several processes may share its batches."""
        ...

    @property
    def loras(self) -> Mapping[str, tuple[Side, LoRA | None]]:
        """Fresh LoRA by the option that asks for it, and the side it goes to."""
        ...

    def config(self) -> dict[str, Any]:
        """Its choices as JSON values."""
        ...

    def job(self, bank: Bank, adaptor: Adaptor, before: Before) -> Job:
        """Refuse what cannot be tuned, and prepare the rest; nothing is written.

        Raises:
            InputError: Nothing can be learnt, or a choice does not fit the bank or the adaptor.
            OverlapError: A patient is in train and validate, or a test patient was seen.
        """
        ...

    @staticmethod
    def card(test: Mapping[str, Any]) -> dict[str, float | int | None]:
        """What the model card says of the scores."""
        ...

    @staticmethod
    def test_rows(bank: Bank, name: str) -> Int[np.ndarray, " n"]:
        """Row numbers of the test split that a finished run of the task ``name`` can be judged on."""
        ...

    @staticmethod
    def judge_run(run: Path, adaptor: Adaptor, bank: Bank, rows: Int[np.ndarray, " n"], how: "How") -> dict[str, Any]:
        """Score a finished run on test rows of any bank of the same encoders; JSON values by arm."""
        ...


@dataclass(frozen=True, kw_only=True)
class How:
    """Where and how exactly a finished run is judged.

    Attributes:
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: Of the forward pass.
    """

    device: str = "auto"
    precision: Precision = "fp32"
