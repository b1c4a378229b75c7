"""Arms that read images again: how they are made, what they need before a study starts, and what they will cost."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from adaptmed.bank.source_files import ManifestFiles
from adaptmed.errors import AdaptmedError, InputError, sentence
from adaptmed.study.cells import Place
from adaptmed.study.classification.arms import Arm
from adaptmed.study.classification.full import FULL, full_arm
from adaptmed.study.classification.lora_tuned import LORA_TUNED, lora_arm, lora_inside
from adaptmed.study.classification.rows import StudyRows
from adaptmed.study.classification.settings import StudySettings
from adaptmed.study.classification.subject import Subject
from adaptmed.study.report.tables import percent
from adaptmed.training.settings import FinetuneSettings

SETTINGS: Mapping[str, FinetuneSettings] = {"lora-tuned": LORA_TUNED, "full": FULL}
"""How each of these arms is tuned."""


def again_arms(subject: Subject, settings: StudySettings) -> dict[str, Callable[[], Arm]]:
    """The arms by name; each loads the image encoder when it is first needed, and leaves it as it is."""
    rows, bank, encoders = subject.rows, subject.bank, subject.encoders
    lora, full = (replace(SETTINGS[name], precision=settings.precision) for name in ("lora-tuned", "full"))
    return {
        "lora-tuned": lambda: lora_arm(rows, bank, encoders.load_image(), settings=lora),
        "full": lambda: full_arm(rows, bank, encoders.load_image(), settings=full),
    }


def check_images(subject: Subject, waiting: Sequence[Place]) -> None:
    """Load the image encoder and find the table where cells that need them are still to be computed.

    Args:
        subject: The bank under study.
        waiting: Cells that are not on disk.

    Raises:
        InputError: The encoder cannot be loaded, is another one now or takes no LoRA, or the table is gone.
    """
    arms = dict.fromkeys(place.arm for place in waiting if place.arm in SETTINGS)
    if not arms:
        return
    name = subject.encoders.image_record.name
    try:
        encoder = subject.encoders.load_image()
    except AdaptmedError as error:
        expected, got = f"the image encoder {name} for {' and '.join(arms)}", f"none ({error})"
        fix = "Install it under this name, or leave these arms out, for example --arms frozen."
        raise InputError(sentence("arms", expected=expected, got=got, fix=fix)) from error
    if "lora-tuned" in arms:
        lora_inside(encoder)
    ManifestFiles.of(subject.bank)


def costs_of(rows: StudyRows, waiting: Sequence[Place]) -> list[str]:
    """Say how many steps cells that read images again will take, and how many images go through the encoder.

    A fraction in which nothing can be told apart trains nothing, and then costs less than is said here.

    Args:
        rows: The study's rows.
        waiting: Cells that are not on disk.
    """
    said, total = [], 0
    groups = dict.fromkeys((place.arm, place.fraction) for place in waiting if place.arm in SETTINGS)
    for arm, fraction in groups:
        seeds = [place.seed for place in waiting if (place.arm, place.fraction) == (arm, fraction)]
        images = [len(rows.fraction(fraction, seed)) for seed in seeds]
        steps = [SETTINGS[arm].steps_of(count) for count in images]
        passes = [SETTINGS[arm].passes_of(count) for count in images]
        total += sum(passes) + len(seeds) * len(rows.test)
        said.append(
            f"{arm} at {percent(fraction)} of the labels, {_count(len(seeds), 'cell')}: {_span(steps)} steps on "
            f"{_span(images)} images in each; {_span(passes)} images go through the encoder forward and back, "
            f"{len(rows.test):,} test images forward."
        )
    return [*said, f"{total:,} images through the image encoder in all, {rows.truth.encoder}."] if said else []


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _span(numbers: Sequence[int]) -> str:
    low, high = np.min(numbers), np.max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
