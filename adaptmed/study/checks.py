"""What must hold before arms stand side by side: a plain bank with its tuned one, and the labels that were read."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from adaptmed.adaptor.model import Adaptor
from adaptmed.adaptor.records import records_of
from adaptmed.adaptor.saving import TENSOR_FILE, find_adaptor
from adaptmed.bank import Bank
from adaptmed.errors import InputError, sentence
from adaptmed.runs.lineage import Lineage


def check_counts(banks: Sequence[Bank], runs: Sequence[Path], tuned: Sequence[tuple[Bank, Path]]) -> None:
    """Check that there are banks, one run or none per bank, and one tuned bank or none.

    Raises:
        InputError: If there are not.
    """
    for name, option, given in (("adaptor", "--adaptor", runs), ("tuned", "--tuned-bank", tuned)):
        if not banks or (given and len(given) != len(banks)):
            expected, fix = (
                f"one per bank ({len(banks)}), in the same order, or none",
                f"Repeat {option} once per bank.",
            )
            raise InputError(sentence(name, expected=expected, got=len(given), fix=fix))


def check_tuned(plain: Bank, tuned: Bank) -> None:
    """Check that two banks hold the same rows and that LoRA alone tells their Tokens apart.

    Raises:
        InputError: If the rows, an encoder, its inputs, the layout or the number format differ, if the plain bank's
            encoders are tuned, or if the tuned bank's are not.
        BankError: If a bank holds no images.
    """
    name = str(tuned.folder)
    if tuned.info.rows_file_sha256 != plain.info.rows_file_sha256:
        fix = "Embed the same table with the same options, and mend images that one of the two could not read."
        expected = f"the rows of {plain.folder} (rows.parquet {plain.info.rows_file_sha256})"
        raise InputError(sentence(name, expected=expected, got=tuned.info.rows_file_sha256, fix=fix))
    ours, theirs = _facts(plain), _facts(tuned)
    other = [f"{fact}: {ours[fact]} there, {theirs[fact]} here" for fact in ours if ours[fact] != theirs[fact]]
    if other:
        expected = f"Tokens that differ from those of {plain.folder} by LoRA alone"
        fix = "Run `adaptmed embed m.csv --adaptor RUN` with the options of the plain bank."
        raise InputError(sentence(name, expected=expected, got="; ".join(other), fix=fix))
    for bank, wanted in ((plain, False), (tuned, True)):
        if any(record is not None and record.lora is not None for record in records_of(bank)) != wanted:
            expected = f"Tokens of encoders with{'' if wanted else 'out'} LoRA"
            got = f"encoders with{'out' if wanted else ''} it"
            fix = "The plain bank comes first; --tuned-bank is what `adaptmed embed m.csv --adaptor RUN` wrote."
            raise InputError(sentence(str(bank.folder), expected=expected, got=got, fix=fix))


def check_labels(run: Path, fractions: Sequence[float]) -> None:
    """Check that a run has read no label that a cell of the study would not have.

    ``adaptmed finetune`` trains on labels, as ``adaptmed pretrain --set matching.by_label=true`` does, and what is
    trained from such a run, or on the bank of its tuned encoders, has them behind it too. It may be judged only where
    it read all labels and every cell has all of them as well.

    Raises:
        InputError: If labels outside a cell's fraction were read.
    """
    read = Lineage.of_run(run).labels
    if read is None or (read == 1.0 and set(fractions) == {1.0}):
        return
    studied = ", ".join(map(str, fractions))
    got = f"one that has read labels at fraction {read}, for a study of the fractions {studied}"
    fix = "Labels outside a cell's fraction were read: study a pre-trained run, or all labels by a run on all labels."
    raise InputError(sentence(str(run), expected="a run that no label has trained", got=got, fix=fix))


def place_of(bank: Bank) -> tuple[str, str]:
    """Name a bank's table and its encoders, as every record of a study does."""
    info = bank.info
    images, texts = ("-" if side is None else side.name for side in (info.images, info.texts))
    return info.manifest.rsplit("/", 1)[-1], f"{images} + {texts}"


def check_distinct(banks: Sequence[Bank]) -> None:
    """Check that no two banks share table and encoders: tables and curves are drawn per pair, and would mix them up.

    Raises:
        InputError: If two do.
    """
    names = [place_of(bank) for bank in banks]
    for name in names:
        if names.count(name) > 1:
            got, fix = f"{' with '.join(name)} twice", "Study them into two --out folders."
            raise InputError(sentence("banks", expected="other data or other encoders each", got=got, fix=fix))


def _facts(bank: Bank) -> dict[str, Any]:
    """What decides the Tokens of a bank, LoRA apart."""
    image, text = records_of(bank)
    return {
        "image encoder": image.fingerprint,
        "text encoder": None if text is None else text.fingerprint,
        "preprocessing": image.preprocessing,
        "longest text": None if text is None else text.max_tokens,
        "layout": bank.info.layout,
        "number format": bank.info.dtype,
    }


def identity_of(bank: Bank, weights: str) -> str:
    """Name a bank with the adaptor of these weights: its encoders, and a digest of all that decides a cell."""
    stored = (bank.info.images, bank.info.texts)
    keys = [side.token_key for side in stored if side is not None]
    digest = hashlib.sha256(" ".join([*keys, bank.info.rows_file_sha256, weights]).encode())
    return f"{' + '.join('-' if side is None else side.name for side in stored)}-{digest.hexdigest()[:12]}"


def weights_of(run: Path) -> str:
    """The sha256 of a saved adaptor's tensors."""
    return hashlib.sha256((find_adaptor(run) / TENSOR_FILE).read_bytes()).hexdigest()


def lora_parameters(adaptor: Adaptor) -> int:
    """Count the LoRA parameters of the encoders that a saved adaptor belongs to."""
    from adaptmed.lora import saved_parameters

    return sum(saved_parameters(folder) for folder in adaptor.encoders.lora_folders.values())
