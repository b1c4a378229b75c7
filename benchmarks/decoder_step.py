"""What feeding a decoder from the bank costs, and what it saves over the encoder in the loop.

Run: python benchmarks/decoder_step.py [--work runs/bench]
Bars: step of the default decoder from the bank ÷ the same step on tokens, pixels and masks in memory <= 1.10; the
speed-up over the image encoder in the loop is printed.
"""

import argparse
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import torch
from timing import compare

from adaptmed import Bank, Manifest, load_image_encoder
from adaptmed.data.phantom import write_phantom
from adaptmed.embedding.embed import EmbedOptions, embed
from adaptmed.heads.decoders import build_decoder
from adaptmed.tasks.segmentation.masks import find_masks
from adaptmed.tasks.segmentation.model import Segmenter, Windows
from adaptmed.tasks.segmentation.reading import Example, Examples, Steps, Wanted, WindowReader
from adaptmed.tasks.segmentation.settings import LOSSES, SegmentationSettings
from adaptmed.tasks.segmentation.shapes import shape_for
from adaptmed.tasks.segmentation.training import channels_last

SETTINGS, STEPS = SegmentationSettings(), 6


def training_step(model: Segmenter) -> Callable[[Example], None]:
    """One optimiser step in bf16 on a batch."""
    optimiser = torch.optim.AdamW(model.decoder.parameters(), lr=1e-4)

    def step(example: Example) -> None:
        windows, masks = example
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(windows)
        optimiser.zero_grad()
        LOSSES[SETTINGS.loss](logits, masks).backward()
        optimiser.step()

    return step


def main() -> None:
    """Compare the three ways in one run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/bench"))
    work = parser.parse_args().work / "decoder-step"
    manifest = Manifest.read(write_phantom(work / "phantom", splits={"train": 256, "test": 8}, seed=5))
    encoder = load_image_encoder("bundled:dinov2-small")
    bank: Bank = embed(manifest, encoder, None, work / "bank", options=EmbedOptions(pixels=True))
    masks = find_masks(bank, work / "masks")
    shape = shape_for(bank, SETTINGS, fused_width=None, classes=len(masks.labels))
    step = training_step(channels_last(Segmenter(build_decoder(shape)).train()))
    looped = training_step(
        channels_last(Segmenter(build_decoder(shape), encoder=encoder, layout=bank.info.layout).train())
    )
    examples = Examples(WindowReader(bank, Wanted()), masks, masks.rows("train"), SETTINGS.window_slices, 0)
    position = iter(cycle(range(0, 10**6, STEPS)))

    def batches() -> Steps:
        return Steps(examples, size=SETTINGS.pictures_per_batch, steps=STEPS, step=lambda: next(position))

    kept = list(batches())
    bare = [(Windows(windows.size, pixels=windows.pixels), mask) for windows, mask in kept]
    ways = {
        "in memory": lambda: [step(example) for example in kept],
        "from the bank": lambda: [step(example) for example in batches()],
        "encoder in the loop": lambda: [looped(example) for example in bare],
    }
    count = STEPS * SETTINGS.pictures_per_batch
    compare("a step of the default decoder, 224 px", ways, rounds=7, items=dict.fromkeys(ways, count))


if __name__ == "__main__":
    main()
