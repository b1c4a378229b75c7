"""Every call of the package that wrote the files, as it is made today; only this file follows the package."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback

from adaptmed import Adaptor, methods
from adaptmed.bank import Bank
from adaptmed.bank.verify import verify
from adaptmed.lora import LoRA
from adaptmed.methods import Method, Schedule, changed
from adaptmed.pretraining.calibrate import calibrate
from adaptmed.pretraining.pretrain import pretrain
from adaptmed.study.classification.settings import StudySettings
from adaptmed.study.classification.study import study
from adaptmed.study.segmentation.settings import SegmentationStudy
from adaptmed.study.segmentation.study import study_segmentation
from adaptmed.tasks.classification.task import Classification
from adaptmed.tasks.evaluate import evaluate
from adaptmed.tasks.finetune import finetune
from adaptmed.tasks.pairs.settings import Coordination, PairChoices
from adaptmed.tasks.pairs.task import Pairs
from adaptmed.tasks.retrieval.judging import judge_retrieval
from adaptmed.tasks.segmentation.settings import MaskChoices, SegmentationSettings
from adaptmed.tasks.segmentation.task import Segmentation
from adaptmed.tasks.task import How, Task
from adaptmed.training.encoders import Online
from adaptmed.training.settings import FinetuneSettings
from adaptmed.training.trainer import RunOptions

SHORT = Schedule(epochs=2, batch_size=6, learning_rate=1e-3, warmup_share=0.0)
TUNED = FinetuneSettings(epochs=2, batch_size=8, precision="fp32")
MASKS = SegmentationSettings(steps=6, validations=2, batch_size=4, channels=4, precision="fp32")
CPU: dict[str, Any] = {"device": "cpu", "checkpoint_every": 1}


def _tiny(method: Method) -> Method:
    layer = None if method.term("patches").layer is None else 1
    patches = {"decoder_width": 8, "decoder_blocks": 1, "decoder_heads": 2, "layer": layer}
    sizes = {"width": 8, "heads": 2, "dropout": 0.1, "layers": 2}
    return replace(changed(method, {"fusion": sizes, "patches": patches}), schedule=SHORT)


def _method(name: str) -> Method:
    match name:
        case "adaptor" | "lora":
            small = changed(methods.adaptor(), {"fusion": {"width": 8, "heads": 2, "dropout": 0.1}})
            return replace(small, schedule=SHORT)
        case "adaptor-ema":
            hard = changed(_method("adaptor"), {"matching": {"negatives": "hard", "share": 0.5}})
            return replace(hard, schedule=replace(SHORT, ema=0.9))
        case "umd-faithful":
            return _tiny(methods.umd(faithful=True))
        case _:
            return _tiny(methods.PRESETS[name]())


def _training(here: Path, name: str) -> Callable[..., Any]:
    """Bind what a named run is trained from; what is left is its folder and the callbacks."""
    bank, asked = Bank.open(here / "bank"), Bank.open(here / "bank-q")
    adaptor, umd = here / "runs" / "adaptor", here / "runs" / "umd"
    match name:
        case "labels":
            return partial(_tune, bank, adaptor, Classification(settings=TUNED, seed=3))
        case "masks":
            return partial(_tune, bank, adaptor, Segmentation(MaskChoices(settings=MASKS, seed=3)))
        case "answers":
            choices = PairChoices(task="answering", settings=TUNED, coordination=Coordination(), seed=3)
            return partial(_tune, asked, umd, Pairs(choices))
        case "pair-labels":
            choices = PairChoices(task="image-text-classification", settings=TUNED, seed=3)
            return partial(_tune, bank, umd, Pairs(choices))
        case "calibrated":
            return partial(calibrate, asked, umd, schedule=SHORT, seed=3)
        case "lora":
            online = Online(image_lora=LoRA(rank=2), workers=1)
            return partial(pretrain, bank, _method(name), seed=3, start=adaptor, online=online)
        case _:
            return partial(pretrain, bank, _method(name), seed=3)


def _tune(bank: Bank, run: Path, task: Task, out: Path, **how: Any) -> Any:
    return finetune(bank, run, out, task, RunOptions(**how))


def train(here: Path, name: str, out: Path, *callbacks: Callback) -> Any:
    """Train the run of this name into ``out``, go on with it, or find it finished."""
    return _training(here, name)(out, **CPU, callbacks=callbacks)


def damaged(bank: Path) -> list[str]:
    """Name the damaged files of a bank."""
    return verify(bank)


def tokens_of(bank: Path) -> list[torch.Tensor]:
    """Read image, text and masked tokens of the first four rows."""
    there, rows = Bank.open(bank), Bank.open(bank).subset("train")[:4]
    masked = there.masked_tokens(rows, rows * 0)
    return [there.image_tokens(rows).values, there.text_tokens(rows).values, masked.values]


def embeddings_of(here: Path, run: str) -> dict[str, torch.Tensor]:
    """Embed three pictures and two texts with the saved adaptor of a run."""
    adaptor = Adaptor.from_pretrained(here / "runs" / run)
    with torch.no_grad():
        images = adaptor.embed_images([here / f"{number}.png" for number in range(3)])
        return {f"{run} image": images, f"{run} text": adaptor.embed_texts(["no effusion seen", "lung"])}


def judged(here: Path, name: str, out: Path) -> dict[str, Any]:
    """Evaluate a run again; ``retrieval`` is that of umd."""
    if name == "retrieval":
        return judge_retrieval(here / "runs" / "umd", Bank.open(here / "bank"), top_k=4, device="cpu")
    bank = Bank.open(here / ("bank-q" if name == "answers" else "bank"))
    return evaluate(here / "runs" / name, bank, how=How(device="cpu"), out=out)


def studied(here: Path, name: str, out: Path) -> dict[str, Any]:
    """Study the adaptor on labels (``study``) or on masks (``study-masks``)."""
    banks, runs = [Bank.open(here / "bank")], [here / "runs" / "adaptor"]
    if name == "study":
        settings = StudySettings(fractions=(0.5, 1.0), seeds=2, replicates=50)
        return study(banks, runs, out, settings=settings, examples=False)
    training = SegmentationSettings(steps=2, validations=1, batch_size=4, channels=4, augment=False, precision="fp32")
    masks = SegmentationStudy(fractions=(1.0,), seeds=1, replicates=50, training=training)
    return study_segmentation(banks, runs, out, settings=masks, examples=False, device="cpu")
