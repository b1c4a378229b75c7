"""What a report shows of one kind of task: which metric first, and beside which arms."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from adaptmed.study.report.tables import Row


@dataclass(frozen=True)
class Kind:
    """What a report shows of one kind of task.

    Attributes:
        primary: The metric of the first sentence, the curves and the first table.
        secondary: Metrics with a table of their own.
        baselines: Arms that every other number should stand beside.
        yardsticks: What these are, in a sentence.
        of_one: What a primary metric that is not a mean over labels is of.
    """

    primary: str
    secondary: tuple[str, ...]
    baselines: tuple[str, ...]
    yardsticks: str
    of_one: str = ", one class against the rest"


LABELS = Kind(
    primary="auroc",
    secondary=("balanced_accuracy", "accuracy", "average_precision"),
    baselines=("frozen", "adaptor-untrained"),
    yardsticks="The frozen probe and the untrained adaptor are the honest yardsticks: what they reach is not the "
    "pre-training's doing.",
)
ENCODER_ARMS = {"frozen", "lora-tuned", "full"}
ENCODERS = replace(
    LABELS,
    baselines=("frozen",),
    yardsticks="The frozen probe is the honest yardstick: what it reaches is not the tuning's doing.",
)
MASKS = Kind(
    primary="dice_positives",
    secondary=("dice", "hd95_mm", "surface_dice"),
    baselines=("frozen", "unet", "empty"),
    yardsticks="The same decoder on the frozen encoder, a U-Net trained from scratch and the empty prediction are the "
    "honest yardsticks. Dice over all images counts an empty image as 1 when nothing is predicted there, so that "
    "predicting nothing already reaches the share of empty images; Dice on positives leaves such images out.",
)


ANSWERS = Kind(
    primary="accuracy",
    secondary=(),
    baselines=("question", "frozen", "no pre-training"),
    yardsticks="The tuned head on the question alone, the same head on frozen features of both, and the untrained "
    "fusion are the honest yardsticks: what the question alone reaches is not seen in any image.",
    of_one=" of the answers",
)


def kind_of(summaries: Sequence[Row]) -> Kind:
    """Tell from the rows what kind of task was studied, and for labels whether an arm stands on an adaptor."""
    tasks, arms = {row.get("task") for row in summaries}, {row.get("arm") for row in summaries}
    if "answering" in tasks:
        return ANSWERS
    if "segmentation" in tasks:
        return MASKS
    return ENCODERS if arms and arms <= ENCODER_ARMS else LABELS
