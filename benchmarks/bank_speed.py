"""What the bank buys: a pre-training step from the bank, from tokens in memory, and with both encoders in the loop.

Run: python benchmarks/bank_speed.py [--work runs/bench]
Bars: pairs/s from the bank ÷ encoders in the loop >= 8; step from the bank ÷ step on tokens in memory <= 1.10.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path

import torch
from timing import compare

from adaptmed import Bank, Manifest, load_image_encoder, load_text_encoder, methods
from adaptmed.bank import BankLoader, Layout
from adaptmed.bank.layout import arrange_image
from adaptmed.cohort.rows import pairs_of
from adaptmed.data.images import prepare, read_image
from adaptmed.data.phantom import write_phantom
from adaptmed.embedding.embed import EmbedOptions, embed
from adaptmed.pretext.matching import MatchingHead
from adaptmed.pretraining.job import fresh_adaptor
from adaptmed.pretraining.terms.contrastive import contrastive_loss
from adaptmed.pretraining.terms.matching import matching_losses
from adaptmed.training.optimiser import parameter_groups
from adaptmed.types import Batch

BATCH, METHOD, STEPS = 64, methods.adaptor(), 5


def training_step(bank: Bank) -> Callable[[Batch], None]:
    """One optimiser step of pre-training in bf16 on a batch of Tokens."""
    fusion = fresh_adaptor(bank, METHOD, pairs_of(bank, "train"), seed=0).fusion.train()
    head = MatchingHead(2 * fusion.width)
    groups = parameter_groups(torch.nn.ModuleList([fusion, head]), METHOD.schedule.weight_decay)
    optimiser = torch.optim.AdamW(groups, lr=METHOD.schedule.learning_rate)
    seeds = count()

    def step(batch: Batch) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            seed = next(seeds)
            contrastive = contrastive_loss(fusion, batch, METHOD.term("contrastive"), seed=seed)
            matching = matching_losses(fusion, head, batch, METHOD.term("matching"), seed=seed)["matching"]
        optimiser.zero_grad()
        (contrastive + matching).backward()
        torch.nn.utils.clip_grad_norm_(fusion.parameters(), METHOD.schedule.clip)
        optimiser.step()

    return step


def main() -> None:
    """Make a small phantom and its banks, then measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("runs/bench"))
    parser.add_argument("--layouts", nargs="+", default=["grid8", "pooled", "all"])
    arguments = parser.parse_args()
    work = arguments.work
    manifest = Manifest.read(write_phantom(work / "speed-phantom", splits={"train": STEPS * BATCH}, seed=5))
    image, text = load_image_encoder("bundled:dinov2-small"), load_text_encoder("bundled:minilm-l6")
    pixels = torch.stack(
        [prepare(read_image(manifest.root / name), image.preprocessing) for name in manifest.frame["image"][:BATCH]]
    )
    ids = text.tokenize(list(manifest.frame["text"][:BATCH]))
    for name in arguments.layouts:
        layout = Layout.parse(name)
        bank = embed(manifest, image, text, work / f"speed-bank-{name}", options=EmbedOptions(layout=layout))
        rows = pairs_of(bank, "train")
        step = training_step(bank)
        loader = BankLoader(bank, rows, batch_size=BATCH, drop_last=True)  # every iteration is the same epoch 0
        in_memory = list(loader)

        def bank_steps(step: Callable = step, batches: BankLoader = loader) -> None:
            for batch in batches:
                step(batch)

        def memory_steps(step: Callable = step, batches: list[Batch] = in_memory) -> None:
            for batch in batches:
                step(batch)

        def encoder_step(step: Callable = step, batch: Batch = in_memory[0], layout: Layout = layout) -> None:
            with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
                seen, said = arrange_image(image(pixels), layout), text(ids.input_ids, ids.valid)
            seen, said = seen.to("cpu", torch.float32), said.to("cpu", torch.float32)
            step(Batch(batch.rows, batch.ids, _normal(seen), _normal(said), batch.text_group))

        ways = {"bank": bank_steps, "tokens in memory": memory_steps, "encoders in the loop": encoder_step}
        pairs = {"bank": STEPS * BATCH, "tokens in memory": STEPS * BATCH, "encoders in the loop": BATCH}
        seconds = compare(f"pre-training steps of {BATCH} pairs, layout {name}", ways, items=pairs)
        speed = seconds["encoders in the loop"] / seconds["bank"]
        cost = seconds["bank"] / seconds["tokens in memory"]
        bars = (" (bar: 8)", " (bar: 1.10)") if name == "grid8" else ("", "")
        print(f"  pairs/s from the bank ÷ with both encoders in the loop: {speed:.1f}{bars[0]}")
        print(f"  step from the bank ÷ step on tokens in memory: {cost:.3f}{bars[1]}")


def _normal(tokens):
    """Tokens made under inference mode, as tensors that may enter a graph."""
    return replace(tokens, values=tokens.values.clone(), valid=tokens.valid.clone(), pooled=tokens.pooled.clone())


if __name__ == "__main__":
    main()
