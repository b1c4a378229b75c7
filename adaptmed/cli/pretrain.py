"""``adaptmed pretrain``: from a bank to a trained adaptor."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

from adaptmed.errors import InputError, sentence

if TYPE_CHECKING:
    from adaptmed.methods import Method
    from adaptmed.runs.settings import RunSettings
    from adaptmed.training.encoders import Online


@Parameter(name="*", group=Group("Encoders of a table", sort_key=1))
@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """Encoders of a table, which is embedded into a bank first.

    Attributes:
        image_encoder: With a table: its image encoder, as of `adaptmed embed`.
        text_encoder: With a table: its text encoder.
    """

    image_encoder: str | None = None
    text_encoder: str | None = None


@Parameter(name="*", group=Group("LoRA inside the encoders", sort_key=2))
@dataclass(frozen=True, kw_only=True)
class OnlineOptions:
    """What is trained inside the encoders, which then run in every step.

    Attributes:
        image_lora: Train LoRA inside the image encoder, for example rank=8,roles=attention+mlp (or rank=8 alone).
        text_lora: The same inside the text encoder.
        augment: Change training images at random: small turns, shifts, scales and contrast, never a flip; on by
            default.
        checkpointing: Compute activations again in the backward pass: less memory, more time; off by default.
        accumulate: Batches whose gradients make one step; negatives come from one batch. 1 by default.
    """

    image_lora: str | None = None
    text_lora: str | None = None
    augment: bool | None = None
    checkpointing: bool | None = None
    accumulate: int | None = None


_NO_TABLE, _NO_LORA = TableOptions(), OnlineOptions()


def pretrain(
    source: Path | None = None,
    /,
    *,
    out: Path | None = None,
    method: str | None = None,
    size: Literal["light", "paper"] | None = None,
    faithful: Annotated[bool | None, Parameter(negative=())] = None,
    settings: Annotated[tuple[str, ...], Parameter(name="--set", show_default=False)] = (),
    show: Annotated[bool, Parameter(negative=(), show_default=False)] = False,
    config: Path | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    start: Path | None = None,
    seed: int | None = None,
    precision: Literal["fp32", "bf16"] | None = None,
    device: str = "auto",
    strategy: Literal["ddp", "fsdp"] = "ddp",
    table: TableOptions = _NO_TABLE,
    lora: OnlineOptions = _NO_LORA,
) -> None:
    """Train the fusion between two frozen encoders on the image-text pairs of a bank or a table.

    `--method adaptor` contrasts images with texts. `--method m3ae` and `--method umd` hide words and patches before the
    encoders and rebuild them through a fusion of its own layers for each modality; the text encoder runs in every step,
    the image encoder only when the bank has no `--masked-views`. A run of `umd` goes on with `adaptmed calibrate`.

    A method is a fusion, terms and a schedule. `--show` prints every value that will be used and trains nothing;
    `--set words.share=0.2` changes one of them, and a weight of 0 leaves a term out.

    With --image-lora or --text-lora, LoRA inside that encoder is trained too: its images are read again and encoded in
    every step, which takes the time of the encoder. Then `adaptmed embed m.csv --adaptor RUN` writes the tuned bank.

    Reads the `train` split only; `validate` decides when to stop and which epoch to keep; `test` is never read.
    Writes a run folder: `config.json`, `metrics.jsonl` (one line per epoch), `checkpoints/`, and the trained adaptor in
    `adaptor/`. Run the same command again to go on where it stopped, also after SIGTERM. Under
    `torchrun --nproc-per-node 2 -m adaptmed pretrain ...` the processes share every batch, and its result is that of
    one process.

    Args:
        source: Bank that `adaptmed embed` wrote; or a table, which is embedded into a bank beside the run folder first.
        out: Run folder to write, or to go on with.
        method: Which paper's way of training: adaptor (the default), m3ae or umd.
        size: `light`, the default, is 256 wide: two million parameters of `adaptor`, thirteen of `m3ae` and `umd`;
            `paper` is 768 wide: twelve, and a hundred and sixteen.
        faithful: Arrange everything as the released code of adaptor or umd does, its faults in attention included.
        settings: Change a value of the method, for example --set words.share=0.2 --set patches.layer=3.
        show: Print every value that will be used, as config.json holds it, and train nothing.
        config: Take what is left out from the config.json of another run, or a copy of it.
        epochs: Passes over the training pairs, instead of the method's.
        batch_size: Pairs per step, instead of the method's; contrastive learning needs many.
        learning_rate: Peak learning rate, instead of the method's.
        start: Run or saved adaptor to take the trained fusion of, for example before a few epochs with --image-lora.
        seed: Seed of weights, order, dropout and mismatched texts; 0 by default.
        precision: bf16 computes in mixed precision, fp32 exactly; weights are fp32 in both. By default bf16 where the
            device computes in it, else fp32, which is then faster; a run that was begun goes on with its own.
        device: auto, cpu or cuda.
        strategy: How several processes share the work under torchrun; fsdp is handed to Lightning and is not tested.
        table: Encoders of a table.
        lora: LoRA inside the encoders.
    """
    from adaptmed.runs.precision import usual_precision
    from adaptmed.runs.settings import RunSettings, read_settings

    header, held = read_settings(config, "pretrain")
    precision = precision or held.get("precision") or usual_precision(device, out)
    shared = RunSettings.of(held, "method", "online", seed=seed, precision=precision)
    preset = {"method": method, "size": size, "faithful": faithful}
    quick = {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate}
    chosen = _method(preset, settings, quick, held)
    online = _online(lora, held)
    if show:
        _show(chosen, online, shared)
        return
    if header.get("start_sha256") is not None and start is None:
        fix = "Pass --start with that run, or with another one to start from."
        raise InputError(sentence("start", expected="the run that this one started from", got="none", fix=fix))
    bank = _bank_of(source or header.get("bank"), _named(out), table, precision=shared.precision, device=device)
    options: dict[str, Any] = {**asdict(shared), "device": device, "progress": True}
    _train(bank, chosen, _named(out), options | {"start": start, "strategy": strategy, "online": online})


def _named(out: Path | None) -> Path:
    if out is None:
        raise InputError(sentence("out", expected="a run folder to write", got="none", fix="Pass --out runs/a."))
    return out


def _train(bank: Path, method: "Method", out: Path, options: dict[str, Any]) -> None:
    """Train, and say what was trained and what comes next."""
    from rich.console import Console
    from rich.text import Text

    from adaptmed.bank import Bank
    from adaptmed.pretraining.pretrain import pretrain as train
    from adaptmed.runs.processes import join

    first = join(options["device"]).first
    console = Console(soft_wrap=True, quiet=not first)
    how = f" ({method.size}), at least {method.schedule.epochs} epochs, seed {options['seed']}, into {out}"
    console.print(Text.assemble("Method ", (method.name, "bold"), how))
    opened = Bank.open(bank)
    adaptor = train(opened, method, out, **options)
    if first:
        adaptor.print_trainable_parameters()
    console.print(Text.assemble("Adaptor at its best epoch: ", (str(out / "adaptor"), "bold")))
    following = f"study {bank} --adaptor {out} --out {out}-study"
    if method.hidden:
        following = f"calibrate {out} BANK-OF-THE-TASK --out {out}-calibrated"
    if options["online"] is not None:
        following = f"embed {opened.info.manifest} --adaptor {out} --out {bank}-tuned"
    console.print(Text(f"Next: adaptmed {following}"))


def _method(preset: dict[str, Any], settings: tuple[str, ...], quick: dict[str, Any], held: dict[str, Any]) -> "Method":
    """Return the method of a preset or of a configuration, with what was changed of it."""
    from adaptmed.methods import changed, from_json, preset_of
    from adaptmed.pretraining.choices import parse_changes

    given = {name: value for name, value in preset.items() if value is not None}
    if "method" in held and not given:
        chosen = from_json(held["method"])
    else:
        chosen = preset_of(given.pop("method", "adaptor"), **given)
    changes = parse_changes(settings)
    schedule = {name: value for name, value in quick.items() if value is not None}
    if "epochs" in schedule:
        schedule["least_steps"] = 0  # who names a number of epochs wants no more of them
    return changed(chosen, {**changes, "schedule": schedule | changes.get("schedule", {})})


def _show(method: "Method", online: "Online | None", shared: "RunSettings") -> None:
    """Print what a run's configuration would hold of the choices."""
    import json

    from adaptmed.methods import to_json

    tuned = None if online is None else {k: v for k, v in asdict(online).items() if k != "workers"}
    values = {"command": "pretrain", "method": to_json(method), **asdict(shared), "online": tuned}
    print(json.dumps(values, indent=2))


def _bank_of(source: Path | str | None, out: Path, table: TableOptions, *, precision: str, device: str) -> Path:
    """Return the bank to train on: the one that was named, or the one that a table is embedded into."""
    if source is None:
        fix = "Name the bank that `adaptmed embed` wrote, or a table with its encoders."
        raise InputError(sentence("source", expected="a bank or a table", got="none", fix=fix))
    source = Path(source)
    named = [name for name in (table.image_encoder, table.text_encoder) if name is not None]
    if source.is_dir():
        if named:
            fix = "Leave --image-encoder and --text-encoder out: the bank knows its encoders."
            raise InputError(sentence(str(source), expected="no encoder beside a bank", got=", ".join(named), fix=fix))
        return source
    if not source.exists() and not named:
        return source  # opening it says that there is none
    if table.image_encoder is None:
        expected, got = "--image-encoder beside a table, and --text-encoder for pairs", ", ".join(named) or "neither"
        fix = "Name them, or pass a bank that `adaptmed embed` wrote."
        raise InputError(sentence(str(source), expected=expected, got=got, fix=fix))
    from adaptmed.cli.embed import embed
    from adaptmed.cli.options import EncoderOptions

    bank = Path(f"{out}-bank")
    encoders = EncoderOptions(image_encoder=table.image_encoder, text_encoder=table.text_encoder)
    embed(source, out=bank, encoders=encoders, precision=precision, device=device)  # type: ignore[arg-type]
    return bank


def _online(lora: OnlineOptions, held: dict[str, Any]) -> "Online | None":
    """Return what is trained inside the encoders; ``None`` where both stay as they are."""
    if lora.image_lora is None and lora.text_lora is None and held.get("online") is None:
        return None
    from adaptmed.lora import LoRA
    from adaptmed.runs.settings import build_settings
    from adaptmed.training.encoders import Online

    sides = {"image_lora": lora.image_lora, "text_lora": lora.text_lora}
    given: dict[str, Any] = {name: LoRA.parse(said) for name, said in sides.items() if said is not None}
    how = {"augment": lora.augment, "checkpointing": lora.checkpointing, "accumulate": lora.accumulate}
    given |= {name: value for name, value in how.items() if value is not None}
    return build_settings(Online, "online", {**(held.get("online") or {}), **given})
