"""Fine-tuning for labels and classes of images: features, a head that starts at the best probe, and its scores."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from adaptmed.adaptor.features import adaptor_variants
from adaptmed.adaptor.model import Adaptor
from adaptmed.bank import Bank
from adaptmed.cohort.division import Division, Share, divide_labelled
from adaptmed.cohort.rows import Reject, labelled_rows, labels_of, names_of, patients_of
from adaptmed.heads.outputs import Outputs
from adaptmed.heads.probe import Probe
from adaptmed.layers.draws import step_seed
from adaptmed.lora import LoRA
from adaptmed.runs.processes import device_of
from adaptmed.tasks.classification.head import head_at, starting_probe
from adaptmed.tasks.classification.head_file import HeadFacts, load_label_head, save_label_head
from adaptmed.tasks.classification.model import ImageClassifier, tuning_of
from adaptmed.tasks.judging import judge, order_of
from adaptmed.tasks.task import Before, How, Noun, Reading
from adaptmed.training.batches import LabelledImages, Rows, images_again, tokens_of
from adaptmed.training.encoders import checkpoint_blocks
from adaptmed.training.settings import FinetuneSettings
from adaptmed.training.trainable import trainable_fusion
from adaptmed.training.tuning import Tuning
from adaptmed.training.work import Work, predict_images, work_on
from adaptmed.types import Side


@dataclass(frozen=True, kw_only=True)
class Classification:
    """What is tuned for labels or classes of images, and on what.

    Everything starts at the best linear probe on the adaptor's features; a linear head alone stays the probe. With
    LoRA, images are read again from the manifest, changed at random and encoded in every step; without it everything
    comes from the bank.

    Attributes:
        settings: How to tune.
        lora: Fresh LoRA inside the image encoder; ``None`` leaves the encoder alone.
        train_fusion: Whether the fusion learns too.
        fraction: Share of the labelled training patients, chosen as in a study.
        seed: Of the fraction, fresh weights, the order, augmentation and dropout.
        allow_overlap: Continue although test patients were seen in pre-training; the results say so.
    """

    task: ClassVar[str] = "classification"
    noun: ClassVar[Noun] = "images"
    reads_texts: ClassVar[bool] = False
    shares_batches: ClassVar[bool] = False
    settings: FinetuneSettings = field(default_factory=FinetuneSettings)
    lora: LoRA | None = None
    train_fusion: bool = True
    fraction: float = 1.0
    seed: int = 0
    allow_overlap: bool = False

    @property
    def loras(self) -> Mapping[str, tuple[Side, LoRA | None]]:
        """LoRA goes to the image encoder."""
        return {"lora": ("image", self.lora)}

    def config(self) -> dict[str, Any]:
        """Its choices as JSON values."""
        return {"task": self.task, **asdict(self)}

    def job(self, bank: Bank, adaptor: Adaptor, before: Before) -> "ImageJob":
        """Divide the labelled images.

        Raises:
            InputError: No label of the fraction has a positive and a negative.
            OverlapError: A patient is in train and validate, or a test patient was seen.
        """
        share = Share(fraction=self.fraction, seed=self.seed, allow_overlap=self.allow_overlap)
        return ImageJob(bank, adaptor, self, divide_labelled(bank, share, before=before.seen))

    @staticmethod
    def card(test: Mapping[str, Any]) -> dict[str, float | int | None]:
        """The mean over labels, of the tuned head and of the probe it started at."""
        card: dict[str, float | int | None] = {}
        for arm in ("tuned", "probe"):
            macro = test[arm]["auroc"]["macro"]
            card[f"test AUROC, {arm}"] = macro["value"]
            card[f"test AUROC, {arm}, 95 % from"] = macro["ci_low"]
            card[f"test AUROC, {arm}, 95 % to"] = macro["ci_high"]
            card[f"test ECE, {arm}"] = test[arm]["ece"]
        return card

    @staticmethod
    def test_rows(bank: Bank, name: str) -> Int[np.ndarray, " n"]:
        """Labelled test images."""
        del name
        return labelled_rows(bank, "test")

    @staticmethod
    def judge_run(run: Path, adaptor: Adaptor, bank: Bank, rows: Int[np.ndarray, " n"], how: How) -> dict[str, Any]:
        """Score the head of a finished run on the bank's Tokens."""
        head, facts = load_label_head(run)
        order, names = order_of(bank, facts.names, multiclass=facts.multiclass), names_of(bank)
        unknown = {n: facts.left_out.get(name, "not learnt") for n, name in enumerate(names) if name not in facts.names}
        outputs, where = Outputs(len(names), facts.multiclass, unknown), device_of(how.device)
        autocast = torch.autocast(where.type, torch.bfloat16, enabled=how.precision == "bf16")
        with torch.inference_mode(), autocast:
            features = torch.from_numpy(adaptor_variants(adaptor.fusion.to(where), bank, rows)[facts.variant])
            logits = head.to(where)(features.to(where)).float().cpu()
        probabilities = outputs.probabilities(logits[:, order]).double().numpy()
        return {"tuned": judge(probabilities, labels_of(bank, rows), patients_of(bank, rows), names, outputs)}


@dataclass(frozen=True)
class Start:
    """Where tuning begins.

    Attributes:
        probe: Fitted on the fraction.
        variant: Which features it reads.
        features: Of the fraction.
        test: Its probabilities for the test images.
    """

    probe: Probe
    variant: str
    features: Float[Tensor, "n width"]
    test: Float[np.ndarray, "m output"]

    @property
    def outputs(self) -> Outputs:
        """The labels or classes it tells apart."""
        return Outputs.of(self.probe)


@dataclass(frozen=True)
class ImageJob:
    """One fine-tuning for labels or classes.

    Attributes:
        bank: Labels, and Tokens of the adaptor's image encoder.
        adaptor: Without encoders in memory; ``work`` puts what is tuned into it.
        choices: What is tuned.
        rows: Train, validation and test rows.
    """

    bank: Bank
    adaptor: Adaptor
    choices: Classification
    rows: Division
    rejects: ClassVar[list[Reject] | None] = None

    def label_names(self) -> tuple[str, ...]:
        """Names of the bank's labels or classes."""
        return names_of(self.bank)

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
    def start(self) -> Start:
        """The best linear probe on the features of the fraction, before anything is tuned."""
        bank, rows, choices = self.bank, self.rows, self.choices
        variants = adaptor_variants(self.adaptor.fusion, bank, rows.train)
        probe, variant = starting_probe(
            variants,
            labels_of(bank, rows.train),
            patients_of(bank, rows.train),
            choices.settings,
            classes=None if bank.info.class_column is None else len(bank.classes),
            seed=choices.seed,
        )
        test = np.zeros((0, len(probe.bias)))
        if len(rows.test):
            test = probe.predict(adaptor_variants(self.adaptor.fusion, bank, rows.test)[variant])
        return Start(probe, variant, torch.from_numpy(variants[variant]), test)

    @cached_property
    def model(self) -> ImageClassifier:
        """The head on the adaptor's parts, of which those to be tuned can be trained."""
        adaptor, bank, choices, start = self.adaptor, self.bank, self.choices, self.start
        torch.manual_seed(step_seed(choices.seed, -1))
        if choices.train_fusion:
            example = bank.image_tokens(self.rows.train[:2], dtype=torch.float32)
            adaptor.fusion = trainable_fusion(adaptor.fusion, example)
        else:
            adaptor.fusion.requires_grad_(requires_grad=False)
        if choices.lora is not None:
            adaptor.encoders.attach_lora("image", choices.lora, seed=step_seed(choices.seed, -3))
        encoder = adaptor.encoders.image
        if encoder is not None and choices.settings.checkpointing:
            checkpoint_blocks(encoder.blocks)
        head = head_at(start.probe, start.features, choices.settings)
        return ImageClassifier(head, start.variant, fusion=adaptor.fusion, encoder=encoder, layout=bank.info.layout)

    @cached_property
    def tuning(self) -> Tuning:
        """The model with its loss and optimiser."""
        choices = self.choices
        return tuning_of(self.model, choices.settings, seed=choices.seed, images=len(self.rows.train))

    def work(self, log_folder: Path | None) -> Work | None:
        """Plan the training; a linear head on a frozen fusion is the best one already."""
        del log_folder
        choices, tuning = self.choices, self.tuning
        if choices.lora is None and not choices.train_fusion and choices.settings.hidden is None:
            return None
        outputs, rows = self.start.outputs, self.rows
        draws = choices.seed if choices.settings.augment else None
        train = self._images(rows.train, outputs.targets(labels_of(self.bank, rows.train)), seed=draws)
        targets = outputs.targets(labels_of(self.bank, rows.validate))
        known = targets >= 0 if outputs.multiclass else (targets >= 0).any(dim=1)  # NaN compares as False
        judged = self._images(rows.validate[known.numpy()], targets[known]) if known.any() else None
        return work_on(tuning, train, judged, choices.settings)

    def judge(self, out: Path, device: str) -> dict[str, Any]:
        """Score the tuned head, and the probe it started at."""
        del out
        bank, rows, start = self.bank, self.rows, self.start
        logits = predict_images(self.tuning, self._images(rows.test), self.choices.settings, device)
        truth = labels_of(bank, rows.test), patients_of(bank, rows.test), names_of(bank), start.outputs
        tuned = start.outputs.probabilities(logits).double().numpy()
        return {"tuned": judge(tuned, *truth), "probe": judge(start.test, *truth)}

    def facts(self) -> dict[str, Any]:
        """Nothing beside the counts."""
        return {}

    def save_head(self, out: Path) -> None:
        """Write the head with the names of its logits."""
        names, start, outputs = self.label_names(), self.start, self.start.outputs
        facts = HeadFacts(
            names=tuple(names[index] for index in outputs.usable),
            multiclass=outputs.multiclass,
            left_out={names[index]: reason for index, reason in outputs.reasons.items()},
            variant=start.variant,
            width=start.features.shape[1],
            hidden=self.choices.settings.hidden,
        )
        save_label_head(out, self.model.head, facts)

    def _images(self, rows: Rows, labels: Tensor | None = None, *, seed: int | None = None) -> LabelledImages:
        """The inputs of rows: images read again where there is LoRA, changed by ``seed``, else the bank's Tokens."""
        if self.choices.lora is None:
            return tokens_of(self.bank, rows, labels)
        return images_again(self.bank, rows, labels, seed=seed)
