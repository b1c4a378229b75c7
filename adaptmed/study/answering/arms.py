"""Arms of a study of answers: from the rows of a fraction to logits of the test questions."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from adaptmed.adaptor.fresh import fresh_fusion
from adaptmed.adaptor.model import Adaptor, trainable_parameters
from adaptmed.bank import Bank
from adaptmed.cohort.rows import rows_with_sides
from adaptmed.study.answering.settings import COORDINATED, FRESH, WITHOUT_ADAPTOR
from adaptmed.tasks.pairs.answers import questions_of
from adaptmed.tasks.pairs.baselines import frozen_head
from adaptmed.tasks.pairs.goal import Goal
from adaptmed.tasks.pairs.reading import frozen_features
from adaptmed.tasks.pairs.settings import Coordination, PairChoices
from adaptmed.tasks.pairs.task import PairJob
from adaptmed.training.batches import features_of
from adaptmed.training.work import fit, predict_images


@dataclass(frozen=True)
class Answered:
    """What an arm made of the test questions.

    Attributes:
        logits: One per answer of the fraction's vocabulary.
        parameters: How many numbers training moved.
    """

    logits: Float[Tensor, "n answer"]
    parameters: int


Arm = Callable[[Goal, PairChoices], Answered]


def arms_of(bank: Bank, runs: Mapping[str, Adaptor], device: str) -> dict[str, Arm]:
    """Every arm that a bank and runs allow, blind ones first.

    Args:
        bank: With questions and answers.
        runs: Pre-trained adaptors by the names of their arms; ``no pre-training`` has the first one's shape.
        device: Lightning's accelerator.
    """
    adaptors = list(runs.values())
    blind_and_frozen: tuple[Arm, ...] = (
        lambda goal, _: _majority(goal),
        lambda goal, _: _lookup(bank, goal),
        lambda goal, choices: _head(bank, goal, choices, device, image=False),
        lambda goal, choices: _head(bank, goal, choices, device, image=True),
    )
    arms = dict(zip(WITHOUT_ADAPTOR, blind_and_frozen, strict=True))
    if adaptors:
        arms[FRESH] = partial(_fresh, bank, adaptors[0], device=device)
    for name, adaptor in runs.items():
        arms[name] = partial(_tuned, bank, adaptor, device=device)
        if adaptor.fusion.has_streams:
            arms[name + COORDINATED] = partial(_coordinated, bank, adaptor, device=device)
    return arms


def _majority(goal: Goal) -> Answered:
    often = goal.names.index(goal.facts["majority"])
    logits = torch.full((len(goal.rows.test), len(goal.names)), -torch.inf)
    logits[:, often] = 0.0
    return Answered(logits, 0)


def _lookup(bank: Bank, goal: Goal) -> Answered:
    """Count the answers that the very same question had in the fraction; to any other the majority is given."""
    counts: dict[str, Counter[int]] = {}
    numbers = goal.targets(goal.rows.train).tolist()
    for question, answer in zip(questions_of(bank, goal.rows.train), numbers, strict=True):
        counts.setdefault(_plain(question), Counter())[answer] += 1
    answered = _majority(goal)
    for place, question in enumerate(questions_of(bank, goal.rows.test)):
        for answer, count in counts.get(_plain(question), Counter()).items():
            answered.logits[place, answer] = count
    return answered


def _head(bank: Bank, goal: Goal, choices: PairChoices, device: str, *, image: bool) -> Answered:
    tuning = frozen_head(bank, goal, choices, device=device, image=image)
    features = features_of(frozen_features(bank, goal.rows.test, image=image))
    logits = predict_images(tuning, features, choices.settings, device)
    return Answered(goal.possible(bank, logits, goal.rows.test), trainable_parameters(tuning.model))


def _tuned(bank: Bank, start: Adaptor, goal: Goal, choices: PairChoices, *, device: str) -> Answered:
    """Tune the fusion of an adaptor with a fresh head on the fraction; the adaptor itself stays as it was."""
    with torch.random.fork_rng():
        job = PairJob(bank, Adaptor(start.fusion, start.encoders), goal, choices)
        work = job.work(None)
        fit(work, device)
        logits = predict_images(work.tuning, job.reading.pairs(goal.rows.test), choices.settings, device)
    return Answered(goal.possible(bank, logits, goal.rows.test), trainable_parameters(job.model))


def _coordinated(bank: Bank, start: Adaptor, goal: Goal, choices: PairChoices, *, device: str) -> Answered:
    return _tuned(bank, start, goal, replace(choices, coordination=Coordination()), device=device)


def _fresh(bank: Bank, shape: Adaptor, goal: Goal, choices: PairChoices, *, device: str) -> Answered:
    """Tune an untrained fusion of the same shape; its input statistics are those of all training pairs."""
    rows = rows_with_sides(bank, "train", texts=True)
    start = Adaptor(fresh_fusion(shape, bank, rows, seed=choices.seed), shape.encoders)
    return _tuned(bank, start, goal, choices, device=device)


def _plain(question: str) -> str:
    return " ".join(question.lower().split()).rstrip(" ?.")
