"""What a test of pairs starts once, or twice under torchrun: ``python -m tests.tasks.pairs.worker FOLDER SCENARIO``."""

import sys
from dataclasses import replace
from pathlib import Path

from safetensors.torch import save_file

from adaptmed.bank import Bank
from adaptmed.lora import LoRA
from adaptmed.runs.processes import join
from adaptmed.tasks.pairs.settings import Coordination
from tests.runs.worker import Recorder
from tests.tasks.pairs.asked import SETTINGS, tune

STILL = replace(
    SETTINGS, batch_size=6, learning_rate=1e-30, fusion_learning_rate=1e-30, weight_decay=0.0, clip=1e9
)  # batches of an odd number of pairs: unequal shares
LORA = {"image_lora": LoRA(rank=2), "text_lora": LoRA(rank=2)}
QUIET, NOISY = Coordination(noise=False), Coordination()
RUNS = {
    "still": ("bank", {"settings": replace(STILL, batch_size=7, accumulate=2), "coordination": QUIET}),
    "moving": ("bank", {"settings": replace(SETTINGS, batch_size=10), "coordination": NOISY}),
    "classes": ("classes", {"settings": STILL, "task": "image-text-classification", "class_weights": "balanced"}),
    "lora": (
        "online",
        {
            "settings": replace(STILL, encoder_learning_rate=1e-30, augment=False),
            "task": "image-text-classification",
            "coordination": QUIET,
            **LORA,
        },
    ),
}


def record(out: Path, data: Path, scenario: str) -> None:
    bank, choices = RUNS[scenario]
    recorder = Recorder()
    # every process draws its own dropout, so that it is left out where two processes are to equal one
    tune(Bank.open(data / bank), data / f"{bank}-run", out / "run", callbacks=(recorder,), dropout=0.0, **choices)
    save_file(recorder.found, out / f"found-{join().rank}.safetensors")


if __name__ == "__main__":
    for scenario in sys.argv[2:]:
        place = Path(sys.argv[1]) / scenario
        place.mkdir(exist_ok=True)
        record(place, Path(sys.argv[1]), scenario)
