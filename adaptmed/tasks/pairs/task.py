"""Fine-tuning for what needs both sides of a pair: answers to questions, labels and classes of images with texts."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Int
from torch import nn

from adaptmed.adaptor.model import Adaptor
from adaptmed.bank import Bank
from adaptmed.cohort.division import Division
from adaptmed.cohort.rows import Reject
from adaptmed.errors import InputError, sentence
from adaptmed.layers.draws import step_seed
from adaptmed.lora import LoRA
from adaptmed.tasks.pairs.answers import truncated_questions
from adaptmed.tasks.pairs.baselines import known
from adaptmed.tasks.pairs.coordination import COORDINATION, Coordinator, require_streams
from adaptmed.tasks.pairs.goal import Goal, goal_of, judged_rows
from adaptmed.tasks.pairs.head_file import PairHeadFacts, save_pair_head
from adaptmed.tasks.pairs.model import (
    Beside,
    PairClassifier,
    joint_width,
    pair_head,
    start_at_frequencies,
    token_widths,
    tuning_of,
)
from adaptmed.tasks.pairs.reading import PairReading, frozen_features
from adaptmed.tasks.pairs.scores import judge_again, scores_of
from adaptmed.tasks.pairs.settings import ANSWERING, PairChoices
from adaptmed.tasks.task import Before, How, Noun, Reading
from adaptmed.training.batches import LabelledImages
from adaptmed.training.encoders import Online, OnlineEncoders
from adaptmed.training.trainable import trainable_pair_fusion
from adaptmed.training.tuning import Tuning
from adaptmed.training.work import Work, work_on
from adaptmed.types import Side


@dataclass(frozen=True)
class Pairs:
    """What is tuned for pairs; see :class:`adaptmed.tasks.pairs.settings.PairChoices`.

    Attributes:
        choices: The task, how it is tuned, and on what.
    """

    choices: PairChoices
    noun: ClassVar[Noun] = "pairs"
    reads_texts: ClassVar[bool] = True
    shares_batches: ClassVar[bool] = True

    @property
    def task(self) -> str:
        """``answering`` or ``image-text-classification``."""
        return self.choices.task

    @property
    def fraction(self) -> float:
        """Share of the training patients."""
        return self.choices.fraction

    @property
    def loras(self) -> Mapping[str, tuple[Side, LoRA | None]]:
        """LoRA goes to either encoder."""
        return {"lora": ("image", self.choices.image_lora), "text-lora": ("text", self.choices.text_lora)}

    def config(self) -> dict[str, Any]:
        """Its choices as JSON values."""
        return asdict(self.choices)

    def job(self, bank: Bank, adaptor: Adaptor, before: Before) -> "PairJob":
        """Find the pairs, and refuse what cannot be tuned.

        Raises:
            InputError: Nothing can be learnt from the fraction, gradients of a fusion with shared layers were to be
                coordinated, or a batch has fewer pairs than there are processes.
            OverlapError: A patient is in train and validate, or a test patient was seen.
        """
        if self.choices.coordination is not None:
            require_streams(adaptor.fusion)
        job = PairJob(bank, adaptor, goal_of(bank, self.choices, before=before.seen), self.choices)
        _require_shares(job, before.world)
        return job

    @staticmethod
    def card(test: Mapping[str, Any]) -> dict[str, float | int | None]:
        """Accuracy, or the mean AUROC, of every arm."""
        card: dict[str, float | int | None] = {}
        arms = {name: found for name, found in test.items() if isinstance(found, dict) and "reason" not in found}
        for arm, scores in arms.items():
            measure, found = ("accuracy", scores["overall"]) if "overall" in scores else ("AUROC", None)
            found = scores["auroc"]["macro"] if found is None else found
            name = f"test {measure}, {arm.replace('_', ' ')}"
            card |= {name: found["value"], f"{name}, 95 % from": found["ci_low"], f"{name}, 95 % to": found["ci_high"]}
        return card

    @staticmethod
    def test_rows(bank: Bank, name: str) -> Int[np.ndarray, " n"]:
        """Test pairs with an answer, or with a label or class."""
        return judged_rows(bank, name)

    @staticmethod
    def judge_run(run: Path, adaptor: Adaptor, bank: Bank, rows: Int[np.ndarray, " n"], how: How) -> dict[str, Any]:
        """Score the head of a finished run on the bank's Tokens."""
        return judge_again(run, adaptor, bank, rows, how)


@dataclass(frozen=True)
class PairJob:
    """One fine-tuning.

    Attributes:
        bank: Tokens of both of the adaptor's encoders.
        adaptor: Without encoders in memory; ``work`` puts what is tuned into it.
        goal: What is learnt, and from which rows.
        choices: How.
    """

    bank: Bank
    adaptor: Adaptor
    goal: Goal
    choices: PairChoices

    @property
    def rows(self) -> Division:
        """Train, validation and test pairs."""
        return self.goal.rows

    @property
    def rejects(self) -> list[Reject]:
        """Rows that lack a side, a question or an answer."""
        return self.goal.rejects

    def label_names(self) -> tuple[str, ...]:
        """Labels or classes; answers are in the head's file."""
        return () if self.choices.task == ANSWERING else self.goal.names

    @property
    def reading(self) -> PairReading:
        """How its pairs are read."""
        return PairReading(self.bank, pixels=self.choices.image_lora is not None)

    @property
    def train(self) -> LabelledImages:
        """The pairs of the fraction."""
        rows, choices = self.rows.train, self.choices
        seed = choices.seed if choices.settings.augment else None
        return self.reading.pairs(rows, self.goal.targets(rows), seed=seed)

    @property
    def judged(self) -> LabelledImages | None:
        """The pairs of the validate split that have a target."""
        rows = self.rows.validate
        rows = rows[known(self.goal.targets(rows)).numpy()]
        return self.reading.pairs(rows, self.goal.targets(rows)) if len(rows) else None

    def division(self) -> Division:
        """Train, validation and test rows."""
        return self.rows

    def network(self) -> nn.Module:
        """The model that is tuned."""
        return self.model

    def open(self, out: Path, reading: Reading) -> None:
        """Everything is in the bank already."""
        del out, reading

    @cached_property
    def model(self) -> PairClassifier:
        """A fresh head on the adaptor's parts, of which those to be tuned can be trained."""
        adaptor, choices, goal = self.adaptor, self.choices, self.goal
        torch.manual_seed(step_seed(choices.seed, -2))
        if choices.train_fusion:
            rows = goal.rows.train[:2]
            image, text = (read(rows, torch.float32) for read in (self.bank.image_tokens, self.bank.text_tokens))
            adaptor.fusion = trainable_pair_fusion(adaptor.fusion, image, text)
        else:
            adaptor.fusion.requires_grad_(requires_grad=False)
        online = self._online() if choices.tunes_encoders else None
        with torch.random.fork_rng():
            torch.manual_seed(step_seed(choices.seed, -1))
            head = pair_head(joint_width(adaptor.fusion), len(goal.names))
        if goal.exclusive:
            start_at_frequencies(head, goal.targets(goal.rows.train), binary=choices.loss == "binary")
        beside = self._beside() if choices.frozen_beside else None
        return PairClassifier(adaptor.fusion, head, online=online, beside=beside, dropout=choices.dropout)

    def work(self, log_folder: Path | None) -> Work:
        """Plan the training; the first process writes the coordination of gradients into the folder."""
        choices, coordinator = self.choices, None
        if choices.coordination is not None:
            log = None if log_folder is None else log_folder / COORDINATION
            coordinator = Coordinator.of(self.model, choices.coordination, self.goal.score, log=log)
        return work_on(self._tuning(coordinator), self.train, self.judged, choices.settings)

    def judge(self, out: Path, device: str) -> dict[str, Any]:
        """Score the tuned model, and the baselines that are trained for it."""
        return scores_of(self._tuning(None), self.goal, self.reading, self.choices, out, device)

    def facts(self) -> dict[str, Any]:
        """The task, its rows and its outputs."""
        choices, goal = self.choices, self.goal
        facts: dict[str, Any] = {"task": choices.task, "left_out_rows": len(goal.rejects), "outputs": len(goal.names)}
        if choices.task == ANSWERING:
            facts |= {"answers_from": choices.answers_from, "truncated_questions": truncated_questions(self.bank)}
        return facts

    @property
    def head_facts(self) -> PairHeadFacts:
        """What the head reads and predicts."""
        goal, fusion = self.goal, self.adaptor.fusion
        beside = token_widths(fusion) if self.choices.frozen_beside else None
        return PairHeadFacts(
            task=self.choices.task, width=joint_width(fusion), names=goal.names, beside=beside, **goal.facts
        )

    def save_head(self, out: Path) -> None:
        """Write the head with the names of its logits."""
        save_pair_head(out, self.model, self.head_facts, self.goal.kinds)

    def _tuning(self, coordinator: Coordinator | None) -> Tuning:
        goal, choices, items = self.goal, self.choices, len(self.rows.train)
        tuning = tuning_of(self.model, choices.settings, goal.loss, seed=choices.seed, items=items, right=goal.right)
        tuning.coordinator = coordinator
        return tuning

    def _beside(self) -> Beside:
        fusion = self.adaptor.fusion
        beside = Beside(*token_widths(fusion), fusion.width)
        beside.fit(frozen_features(self.bank, self.rows.train, image=True))
        return beside

    def _online(self) -> OnlineEncoders:
        choices, encoders = self.choices, self.adaptor.encoders
        if choices.image_lora is not None:
            encoders.attach_lora("image", choices.image_lora, seed=step_seed(choices.seed, -3))
        if choices.text_lora is not None:
            encoders.attach_lora("text", choices.text_lora, seed=step_seed(choices.seed, -4))
        online = Online(image_lora=choices.image_lora, text_lora=choices.text_lora)
        return OnlineEncoders(encoders, replace(online, checkpointing=choices.settings.checkpointing))


def _require_shares(job: PairJob, world: int) -> None:
    """Every process must have a pair of every batch."""
    settings, train, judged = job.choices.settings, len(job.rows.train), job.judged
    smallest = train // settings.batches_of(train)
    if judged is not None:
        smallest = min(smallest, judged.count // -(-judged.count // settings.batch_size))
    if smallest < world:
        fix = "Start fewer processes, or pass a larger --batch-size."
        expected = f"a pair in every batch for each of the {world} processes"
        raise InputError(sentence("batch_size", expected=expected, got=smallest, fix=fix))
