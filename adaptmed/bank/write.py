"""Writing a bank: the plan first, then shard by shard; a killed run goes on where it stopped."""

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import BFloat16, Float, Shaped
from safetensors.torch import save_file
from torch import Tensor

from adaptmed.bank.files import read_json
from adaptmed.bank.format import INFO, PLAN, SHARDS, Kind, Plan
from adaptmed.bank.quantised import scale_name
from adaptmed.bank.shards import Shard, StoredTap, tap_names
from adaptmed.errors import BankError, sentence
from adaptmed.files import is_unfinished, sha256_of, write_json, written_whole
from adaptmed.types import TokenIds

_LATER = {
    "taps": 0,
    "pixels": False,
    "own_size": False,
    "image.plane": None,
    "image.window": None,
    "image.mask_ratio": None,
}
"""What plans written before these were options meant."""
_NO_FACTS = Shard()


def begin(folder: Path, plan: Plan) -> bool:
    """Open a folder for writing by this plan, or continue one that was begun by the same plan.

    Args:
        folder: Of the bank; made when missing.
        plan: What the bank is to be made of.

    Returns:
        True when the bank is whole already and nothing is left to write.

    Raises:
        BankError: As of ``is_whole``.
    """
    whole = is_whole(folder, plan)
    if not whole:
        write_json(folder / PLAN, plan.as_dict())
    return whole


def as_begun(folder: Path, plan: Plan) -> Plan:
    """Return a plan that keeps the pixels of volumes as the bank in a folder keeps them, if one was begun there.

    Raises:
        BankError: The plan in the folder is damaged.
    """
    if not (plan.own_size and (folder / PLAN).exists()):
        return plan
    return replace(plan, own_size=bool(read_json(folder / PLAN).get("own_size", False)))


def is_whole(folder: Path, plan: Plan) -> bool:
    """Tell whether the bank of this plan is whole already; nothing is written.

    A plan in a folder without a whole shard binds nobody yet: it may be replaced.

    Raises:
        BankError: The folder was begun by another plan (both values are named), holds other files, or is a file.
    """
    if (folder / PLAN).exists():
        whole = (folder / INFO).exists()
        if whole or any(_is_whole(record.with_suffix("")) for record in (folder / SHARDS).glob("*.json")):
            _refuse_foreign(folder, json.loads(json.dumps(plan.as_dict())))
        return whole
    file = folder.exists() and not folder.is_dir()
    if file or (folder.exists() and not all(map(is_unfinished, folder.iterdir()))):
        got, fix = "a file" if file else "other files", "Choose another --out."
        raise BankError(sentence(str(folder), expected="a bank or an empty folder", got=got, fix=fix))
    return False


def require_space(folder: Path, needed_bytes: int) -> None:
    """Refuse to begin when the disk is too small.

    Args:
        folder: Where the bank is to stand; need not exist.
        needed_bytes: Estimated size of what is still to be written.

    Raises:
        BankError: Less is free; both numbers are named.
    """
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        expected, got = f"{needed_bytes / 1e9:.2f} GB of free disk", f"{free / 1e9:.2f} GB"
        fix = "Free some, choose another --out, or store less: --layout pooled, a smaller --grid, --dtype int8."
        raise BankError(sentence(str(folder), expected=expected, got=got, fix=fix))


def pending_shards(folder: Path, kind: Kind, *, count: int, shard_size: int) -> list[tuple[int, range]]:
    """List the shards that are not whole yet: their number and the distinct images or texts they shall hold."""
    spans = [range(start, min(start + shard_size, count)) for start in range(0, count, shard_size)]
    return [(number, span) for number, span in enumerate(spans) if not _is_whole(folder / _stem(kind, number))]


def rejected_images(folder: Path) -> dict[int, list[int]]:
    """Return the numbers of the distinct images that the whole shards left out, by the number of the shard."""
    records = sorted(path.with_suffix("") for path in (folder / SHARDS).glob("image-*.json"))
    shards = [(int(stem.name.removeprefix("image-")), stem) for stem in records if _is_whole(stem)]
    rejects = {number: Shard.read(stem.with_suffix(".json")).rejects for number, stem in shards}
    return {number: [item for item, _ in left_out] for number, left_out in rejects.items() if left_out}


def reopen(folder: Path, numbers: Iterable[int]) -> None:
    """Make shards of images pending again; the bank is not whole until it is sealed anew."""
    (folder / INFO).unlink(missing_ok=True)
    for number in numbers:
        (folder / f"{_stem('image', number)}.json").unlink()


def write_image_shard(
    folder: Path,
    number: int,
    pieces: Sequence[Mapping[str, Tensor]],
    facts: Shard = _NO_FACTS,
) -> Shard:
    """Write one shard of images whole, and after it the json that says so.

    Args:
        folder: Of the bank.
        number: Of the shard.
        pieces: Of some of its images each, in order, by the names of the tensors in the shard, in the bank's layout and
            dtype: ``values`` and ``pooled`` of their Tokens, ``tap0``, ``tap1``, … shallow to deep, ``masked_values``,
            ``masked_pooled`` and ``masked_kept`` of masked views, the scales of codes, and ``pixels``; of slices at
            their own size these are flat, with ``pixel_lengths`` and ``pixel_sizes``. Empty when all were rejected.
        facts: Grid and prefix of their Tokens, rejects, and of volumes slices; everything else is filled in here.
    """
    tensors = {"values": torch.empty(0, 0, 0), "pooled": torch.empty(0, 0)}
    if pieces:
        tensors = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
        names = [name for name in tap_names(len(tensors)) if name in tensors]
        widths = [tensors.get(scale_name(name), tensors[name]).shape[1] for name in names]
        grids = [(tensors[name].shape[2], tensors[name].shape[3]) for name in names]
        facts = replace(facts, taps=tuple(map(StoredTap, widths, grids)))
    if "pixel_lengths" in tensors:
        tensors["pixel_offsets"] = _offsets(tensors.pop("pixel_lengths"))
    return _write_shard(folder, "image", number, tensors, facts)


def write_text_shard(
    folder: Path,
    number: int,
    values: Sequence[Shaped[Tensor, "_ _channel"]],
    pooled: Sequence[Float[Tensor, " width"]],
    ids: TokenIds,
    scales: Sequence[BFloat16[Tensor, "1 width"]] = (),
) -> Shard:
    """Write one shard of texts whole, without padding, and after it the json that says so.

    Args:
        folder: Of the bank.
        number: Of the shard.
        values: Token features ``(token, width)`` of each text, in the bank's layout and dtype.
        pooled: Pooled vector of each text.
        ids: Their word ids; with the layout ``pooled`` there are more of them than tokens.
        scales: Of the codes of each text, where ``values`` are codes.
    """
    tensors = {
        "values": torch.cat(list(values)),
        "offsets": _offsets(torch.tensor([len(text) for text in values])),
        "pooled": torch.stack(list(pooled)),
        "input_ids": ids.input_ids[ids.valid].to(torch.int32),
        "id_offsets": _offsets(ids.valid.sum(dim=1)),
    }
    if scales:
        tensors[scale_name("values")] = torch.stack(list(scales))
    return _write_shard(folder, "text", number, tensors, Shard(truncated=int(ids.truncated.sum())))


def _offsets(lengths: Tensor) -> Tensor:
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])


def _write_shard(folder: Path, kind: Kind, number: int, tensors: Mapping[str, Tensor], facts: Shard) -> Shard:
    stem = _stem(kind, number)
    path, record = folder / f"{stem}.safetensors", folder / f"{stem}.json"
    record.unlink(missing_ok=True)
    with written_whole(path) as temporary:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary)
        digest, size = sha256_of(temporary), temporary.stat().st_size
    count, width = tensors["pooled"].shape
    shard = replace(facts, file=stem, count=count, width=width, size_bytes=size, sha256=digest)
    write_json(record, asdict(shard))
    return shard


def read_shards(folder: Path, kind: Kind, *, count: int, shard_size: int) -> tuple[Shard, ...]:
    """Read what the shards say of themselves, in order; all of them must be whole."""
    return tuple(Shard.read(folder / f"{_stem(kind, number)}.json") for number in range(-(-count // shard_size)))


def _stem(kind: Kind, number: int) -> str:
    return f"{SHARDS}/{kind}-{number:05d}"


def _is_whole(stem: Path) -> bool:
    shard = stem.with_name(stem.name + ".safetensors")
    try:
        stated = Shard.read(stem.with_name(stem.name + ".json"))
    except BankError:
        return False
    return shard.exists() and shard.stat().st_size == stated.size_bytes


def _refuse_foreign(folder: Path, asked: Mapping[str, Any]) -> None:
    fix = f"Choose another --out, or delete {folder}."
    there, here = _LATER | _flat(read_json(folder / PLAN, fix=fix)), _LATER | _flat(asked)
    for_people = (".name", ".parameters")
    differing = [name for name in there if there[name] != here.get(name, there[name]) and not name.endswith(for_people)]
    if differing:
        expected = ", ".join(f"{name} = {there.get(name)}" for name in differing)
        got = ", ".join(f"{name} = {here.get(name)}" for name in differing)
        raise BankError(sentence(f"{folder / PLAN}", expected=expected, got=got, fix=fix))


def _flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in facts.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat
