"""What a fine-tuning on pairs works on: the model it trains and the pairs that it reads."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from adaptmed.adaptor.model import Adaptor
from adaptmed.bank import Bank
from adaptmed.errors import InputError, sentence
from adaptmed.layers.draws import step_seed
from adaptmed.runs.lineage import check_unlabelled
from adaptmed.runs.same_tokens import check_tokens
from adaptmed.tasks.pairs.baselines import known
from adaptmed.tasks.pairs.coordination import COORDINATION, Coordinator, require_streams
from adaptmed.tasks.pairs.goal import Goal
from adaptmed.tasks.pairs.model import Beside, PairClassifier, joint_width, pair_head, token_widths
from adaptmed.tasks.pairs.reading import PairReading, frozen_features
from adaptmed.tasks.pairs.settings import PairChoices
from adaptmed.tasks.pairs.training import PairTuning
from adaptmed.training.batches import LabelledImages
from adaptmed.training.encoders import Online, OnlineEncoders
from adaptmed.training.trainable import trainable_pair_fusion


@dataclass(frozen=True)
class PairJob:
    """One fine-tuning.

    Attributes:
        bank: Tokens of both of the adaptor's encoders.
        adaptor: Without encoders in memory; ``tuning`` puts what is tuned into it.
        goal: What is learnt, by whom.
        choices: How.
    """

    bank: Bank
    adaptor: Adaptor
    goal: Goal
    choices: PairChoices

    @property
    def reading(self) -> PairReading:
        """How its pairs are read."""
        return PairReading(self.bank, pixels=self.choices.image_lora is not None)

    @property
    def train(self) -> LabelledImages:
        """The pairs of the fraction."""
        rows, choices = self.goal.rows.train, self.choices
        seed = choices.seed if choices.settings.augment else None
        return self.reading.pairs(rows, self.goal.targets(rows), seed=seed)

    @property
    def judged(self) -> LabelledImages | None:
        """The pairs of the validate split that have a target."""
        rows = self.goal.rows.validate
        rows = rows[known(self.goal.targets(rows)).numpy()]
        return self.reading.pairs(rows, self.goal.targets(rows)) if len(rows) else None

    def tuning(self, log_folder: Path | None) -> PairTuning:
        """Put a fresh head on the adaptor's parts, of which those to be tuned can be trained.

        Args:
            log_folder: Where the coordination of gradients is written down; ``None`` in all processes but the first.
        """
        adaptor, choices, goal = self.adaptor, self.choices, self.goal
        if choices.train_fusion:
            example = self.bank.batch(goal.rows.train[:2], torch.float32)
            assert example.image is not None  # these are pairs
            assert example.text is not None
            adaptor.fusion = trainable_pair_fusion(adaptor.fusion, example.image, example.text)
        else:
            adaptor.fusion.requires_grad_(requires_grad=False)
        online = self._online() if choices.tunes_encoders else None
        with torch.random.fork_rng():
            torch.manual_seed(step_seed(choices.seed, -1))
            head = pair_head(joint_width(adaptor.fusion), len(goal.names))
        beside = self._beside() if choices.frozen_beside else None
        model = PairClassifier(adaptor.fusion, head, online=online, beside=beside)
        coordinator = None
        if choices.coordination is not None:
            log = None if log_folder is None else log_folder / COORDINATION
            coordinator = Coordinator.of(model, choices.coordination, goal.score, log=log)
        settings, items = choices.settings, len(goal.rows.train)
        return PairTuning(model, settings, goal.loss, seed=choices.seed, items=items, coordinator=coordinator)

    def _beside(self) -> Beside:
        fusion = self.adaptor.fusion
        beside = Beside(*token_widths(fusion), fusion.width)
        beside.fit(frozen_features(self.bank, self.goal.rows.train, image=True))
        return beside

    def _online(self) -> OnlineEncoders:
        choices, encoders = self.choices, self.adaptor.encoders
        if choices.image_lora is not None:
            encoders.load_image().attach_lora("image", choices.image_lora, seed=step_seed(choices.seed, -3))
        if choices.text_lora is not None:
            encoders.load_text().attach_lora("text", choices.text_lora, seed=step_seed(choices.seed, -4))
        online = Online(image_lora=choices.image_lora, text_lora=choices.text_lora)
        return OnlineEncoders(encoders, replace(online, checkpointing=choices.settings.checkpointing))


def check(bank: Bank, adaptor: Adaptor, run: Path, choices: PairChoices) -> None:
    """Refuse what cannot be tuned together.

    Raises:
        InputError: The bank has Tokens of other encoders, LoRA is in an encoder already, coordination has no streams,
            or labels outside the fraction have trained ``run``.
    """
    check_tokens(bank, adaptor, run)
    records = {"lora": adaptor.encoders.image_record, "text-lora": adaptor.encoders.text_record}
    asked = {"lora": choices.image_lora, "text-lora": choices.text_lora}
    for option, record in records.items():
        if asked[option] is not None and record.lora is not None:
            fix = f"Leave --{option} out: the bank already comes from the tuned encoder."
            raise InputError(sentence(str(run), expected="an encoder without LoRA", got="LoRA inside it", fix=fix))
    if choices.coordination is not None:
        require_streams(adaptor.fusion)
    check_unlabelled(run, choices.fraction)
