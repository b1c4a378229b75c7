"""Tokens that a run was trained on: a bank must hold the same ones, and texts where texts are read."""

from pathlib import Path

from adaptmed.adaptor.model import Adaptor
from adaptmed.adaptor.records import EncoderRecord
from adaptmed.bank import Bank
from adaptmed.bank.format import StoredImages, StoredTexts
from adaptmed.errors import InputError, sentence


def check_tokens(bank: Bank, adaptor: Adaptor, run: Path, *, texts: bool = True) -> None:
    """Check that a bank holds Tokens of the encoders, the LoRA and the layout that a run was trained on.

    Args:
        bank: The bank.
        adaptor: Of the run, with or without encoders in memory.
        run: Named in the error.
        texts: Whether its texts must fit too, where the adaptor reads texts; else its images alone.

    Raises:
        InputError: If it does not.
    """
    info, encoders = bank.info, adaptor.encoders
    for side, record in encoders.records.items():
        if side == "text" and not texts:
            continue
        stored = info.images if side == "image" else info.texts
        if stored is None or (stored.fingerprint, stored.lora) != (record.fingerprint, record.lora):
            got = "none" if stored is None else f"Tokens of {_encoder(stored)}"
            expected = f"Tokens of {_encoder(record)}, which {run} was trained on"
            fix = "Give every bank the run that was trained on it, in the same order."
            if record.lora is not None:
                fix += f" Tokens of tuned encoders: `adaptmed embed m.csv --adaptor {run}`, then --tuned-bank."
            raise InputError(sentence(str(bank.folder), expected=expected, got=got, fix=fix))
    if info.layout != encoders.layout:
        expected = f"the layout {encoders.layout}, which {run} was trained on"
        fix = "Embed with the same --layout and --grid."
        raise InputError(sentence(str(bank.folder), expected=expected, got=info.layout, fix=fix))


def require_texts(adaptor: Adaptor, run: Path) -> None:
    """Refuse a run whose adaptor reads images alone, for what reads images with texts.

    Args:
        adaptor: Of the run.
        run: Named in the error.

    Raises:
        InputError: If it does.
    """
    if not adaptor.fusion.reads_texts:
        fix = "Take a run with a text encoder, or a task of images: classification or segmentation."
        expected, got = "a run that reads images and texts", "one of images alone"
        raise InputError(sentence(str(run), expected=expected, got=got, fix=fix))


def _encoder(facts: EncoderRecord | StoredImages | StoredTexts) -> str:
    return f"{facts.name} ({facts.fingerprint}{'' if facts.lora is None else f', LoRA {facts.lora}'})"
