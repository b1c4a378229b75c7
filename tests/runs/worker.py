"""What a test starts once, or twice under torchrun: ``python -m tests.runs.worker FOLDER SCENARIO ...``."""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from lightning.pytorch.callbacks import Callback
from safetensors.torch import save_file

from adaptmed.bank import Bank, Layout
from adaptmed.data.manifest import Manifest
from adaptmed.embedding.embed import embed
from adaptmed.errors import InputError
from adaptmed.lora import LoRA
from adaptmed.methods import changed
from adaptmed.pretraining.calibrate import calibrate
from adaptmed.pretraining.pretrain import pretrain
from adaptmed.runs.processes import join
from adaptmed.training.cut_batch import CutBatch
from adaptmed.training.encoders import Online
from adaptmed.types import Tokens
from tests.masked_bank import M3AE, UMD
from tests.short_training import METHOD
from tests.tiny_encoders import EXACT, PatchEncoder, WordEncoder
from tests.tiny_models import vit

PLAIN = replace(changed(METHOD, {"fusion": {"dropout": 0.0}}), schedule=replace(METHOD.schedule, ema=0.8))
STILL = replace(PLAIN, schedule=replace(METHOD.schedule, batch_size=10, learning_rate=1e-30, weight_decay=0.0))
CLIPPED = replace(PLAIN, schedule=replace(METHOD.schedule, batch_size=512, learning_rate=1e-30, weight_decay=0.0))
TUNED = replace(PLAIN, schedule=replace(METHOD.schedule, epochs=2, batch_size=6, learning_rate=1e-30, weight_decay=0.0))
ONLINE = Online(
    image_lora=LoRA(rank=2),
    text_lora=LoRA(rank=2, roles=("attention", "mlp")),
    accumulate=2,
    checkpointing=True,
    learning_rate=1e-30,
    workers=1,
)
FAITHFUL = {"text_features": {"faithful": True}, "image_features": {"faithful": True}}
STOOD = {"epochs": 1, "learning_rate": 1e-30, "weight_decay": 0.0}


class Recorder(Callback):
    """Keeps the loss of every batch and the gradients of every step."""

    def __init__(self):
        self.found = {}

    def on_train_batch_end(self, trainer, _module, outputs, _batch, batch_idx):
        for name, value in outputs.items():
            self.found[f"loss {trainer.current_epoch} {batch_idx} {name}"] = value.detach().float().clone()

    def on_before_optimizer_step(self, trainer, module, _optimizer):
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                self.found[f"gradient {trainer.global_step} {name}"] = parameter.grad.clone()

    def on_validation_end(self, trainer, _module):
        for name, value in trainer.callback_metrics.items():
            if name.startswith("validate"):
                self.found[f"loss {trainer.current_epoch} {name}"] = value.clone()

    def on_fit_end(self, _trainer, module):
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                self.found[f"weight {name}"] = parameter.detach().clone()


class Dies(Callback):
    """Ends one process at a step, for a reason."""

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == 4 and join().rank == join().world - 1:
            raise InputError("the disk of this process is full")


class BrokenEncoder(PatchEncoder):
    """Fails on the last process at its second batch."""

    def __call__(self, pixels):
        if self.seen > 0 and join().rank == join().world - 1:
            raise InputError("the device of this process is gone")
        return super().__call__(pixels)


def record(out, bank, method, **options):
    recorder = Recorder()
    pretrain(bank, method, out / "run", device="cpu", callbacks=(recorder,), **options)
    save_file(recorder.found, out / f"found-{join().rank}.safetensors")


def record_masked(out, bank, method, batch_size, terms=None, online=None, **schedule):
    """Without dropout, which every process draws for itself."""
    schedule = replace(method.schedule, batch_size=batch_size, **schedule)
    still = changed(method, {"fusion": {"dropout": 0.0}, **(terms or {})})
    record(out, bank, replace(still, schedule=schedule), online=online)


def record_calibration(out, bank, run):
    """Calibrate a run without dropout."""
    schedule = replace(UMD.schedule, batch_size=6, **STOOD)
    recorder = Recorder()
    calibrate(bank, run, out / "run", schedule=schedule, device="cpu", callbacks=(recorder,))
    save_file(recorder.found, out / f"found-{join().rank}.safetensors")


def embed_tiny(out, data, encoder):
    embed(Manifest.read(data / "pictures" / "m.csv"), encoder, WordEncoder(), out / "b", options=EXACT)


def embed_volumes(out, data):
    options = replace(EXACT, taps=3, shard_size=2)
    embed(Manifest.read(data / "volumes" / "m.csv"), PatchEncoder(), WordEncoder(), out / "b", options=options)


def embed_masked(out, data):
    torch.manual_seed(0)
    encoder = vit("vit_tiny_patch16_224")
    options = replace(EXACT, layout=Layout("grid", 7), masked_views=2, mask_ratio=0.5)
    embed(Manifest.read(data / "pictures" / "m.csv"), encoder, None, out / "b", options=options)


def exchange(out):
    """Cut batches of several sizes, gather them, fetch Tokens of chosen items, and send gradients back."""
    processes = join()
    found = {}
    for count in (1, 2, 5, 8):
        torch.manual_seed(count)
        values, weight = torch.randn(count, 3, 2), torch.randn(count, 2)
        lengths = torch.arange(count) % 3 + 1
        valid = torch.arange(3)[None] < lengths[:, None]
        mine = values[processes.part].clone().requires_grad_()
        longest = int(lengths[processes.part].max()) if len(mine) else 1
        tokens = Tokens(mine[:, :longest], valid[processes.part][:, :longest], mine[:, 0])
        cut = CutBatch(processes, lambda part: Gathered.apply(part) if processes.world > 1 else part[None])
        whole = cut.whole(mine[:, 0] ** 2)
        items = torch.randint(0, count, (4,))
        chosen = cut.tokens_of(tokens, items)
        words = (chosen.values * chosen.valid[..., None]).sum(1)
        total = (whole * weight).sum() + (words**2).sum()
        total.backward()
        found |= {f"{count} whole": whole.detach(), f"{count} valid": chosen.valid.float().sum(1)}
        found |= {f"{count} chosen": words.detach(), f"{count} gradient": mine.grad / processes.world}
    save_file({name: value.contiguous() for name, value in found.items()}, out / f"found-{processes.rank}.safetensors")


class Gathered(torch.autograd.Function):
    """All processes' tensors, stacked, with the gradient of their sum."""

    @staticmethod
    def forward(_, part):
        parts = [torch.empty_like(part) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(parts, part.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(_, gradient):
        gradient = gradient.contiguous()
        torch.distributed.all_reduce(gradient)
        return gradient[torch.distributed.get_rank()]


SCENARIOS = {
    "exchange": lambda out, _: exchange(out),
    "still": lambda out, data: record(out, Bank.open(data / "bank-55"), STILL),
    "mixed": lambda out, data: record(out, Bank.open(data / "bank-55"), STILL, precision="bf16"),
    "clipped": lambda out, data: record(out, Bank.open(data / "bank"), CLIPPED),
    "moving": lambda out, data: record(out, Bank.open(data / "bank"), PLAIN),
    "lora": lambda out, data: record(out, Bank.open(data / "online" / "bank"), TUNED, online=ONLINE),
    "umd": lambda out, data: record_masked(out, Bank.open(data / "masked" / "views"), UMD, 10, **STOOD),
    "umd-uneven": lambda out, data: record_masked(out, Bank.open(data / "masked" / "uneven-plain"), UMD, 512, **STOOD),
    "umd-one": lambda out, data: record_masked(out, Bank.open(data / "masked" / "uneven-views"), UMD, 6, **STOOD),
    "umd-faithful": lambda out, data: record_masked(
        out, Bank.open(data / "masked" / "uneven-plain"), UMD, 10, FAITHFUL, **STOOD
    ),
    "m3ae": lambda out, data: record_masked(out, Bank.open(data / "masked" / "uneven-plain"), M3AE, 6, **STOOD),
    "umd-lora": lambda out, data: record_masked(
        out, Bank.open(data / "masked" / "uneven-views"), UMD, 6, online=ONLINE, **STOOD
    ),
    "calibrate": lambda out, data: record_calibration(
        out, Bank.open(data / "masked" / "uneven-views"), data / "masked" / "still"
    ),
    "umd-moving": lambda out, data: record_masked(out, Bank.open(data / "masked" / "views"), UMD, 8),
    "dies": lambda out, data: pretrain(
        Bank.open(data / "bank"), PLAIN, out / "run", device="cpu", checkpoint_every=1, callbacks=(Dies(),)
    ),
    "goes-on": lambda out, data: pretrain(
        Bank.open(data / "bank"), PLAIN, out / "run", device="cpu", checkpoint_every=1
    ),
    "embed": lambda out, data: embed_tiny(out, data, PatchEncoder()),
    "embed-volumes": embed_volumes,
    "embed-masked": embed_masked,
    "embed-dies": lambda out, data: embed_tiny(out, data, BrokenEncoder()),
}


if __name__ == "__main__":
    for scenario in sys.argv[2:]:
        place = Path(sys.argv[1]) / scenario
        place.mkdir(exist_ok=True)
        SCENARIOS[scenario](place, Path(sys.argv[1]))
