"""How much `adaptmed embed` costs beyond the encoders themselves: reading, preparing, laying out, writing, hashing.

Run: python benchmarks/embed_speed.py [--work runs/bench] [--studies 384]
Bar: embed ÷ a bare forward loop over the same tensors in memory <= 1.15 (PNG at 256 px).
"""

import argparse
import shutil
from pathlib import Path

import torch
from timing import compare

from adaptmed import Manifest, load_image_encoder, load_text_encoder
from adaptmed.data.images import prepare, read_image
from adaptmed.data.phantom import write_phantom
from adaptmed.embedding.embed import EmbedOptions, embed


def main() -> None:
    """Make a small phantom, hold its pixels and word ids in memory, and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/bench"))
    parser.add_argument("--studies", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    folder = arguments.work / f"embed-phantom-{arguments.studies}"
    manifest = Manifest.read(write_phantom(folder, studies=arguments.studies, seed=6))
    image, text = load_image_encoder("bundled:dinov2-small"), load_text_encoder("bundled:minilm-l6")
    pixels = [prepare(read_image(manifest.root / name), image.preprocessing) for name in manifest.frame["image"]]
    texts = sorted(manifest.frame["text"].dropna().unique(), key=len)
    batch = EmbedOptions().batch_size
    images = [torch.stack(pixels[start : start + batch]) for start in range(0, len(pixels), batch)]
    ids = [text.tokenize(texts[start : start + batch]) for start in range(0, len(texts), batch)]

    def bare() -> None:
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
            for part in images:
                image(part)
            for words in ids:
                text(words.input_ids, words.valid)

    def whole() -> None:
        out = arguments.work / "embed-bank"
        shutil.rmtree(out, ignore_errors=True)
        embed(manifest, image, text, out)

    name = f"{arguments.studies} studies, DINOv2-S + MiniLM, bf16 (bar for the ratio: 1.15)"
    ways = {"bare forward loop": bare, "adaptmed embed": whole}
    compare(name, ways, rounds=arguments.rounds, items=dict.fromkeys(ways, len(pixels)))


if __name__ == "__main__":
    main()
