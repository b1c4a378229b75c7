"""Sealing a bank: the rows that are left, the facts of all shards, and last ``bank.json``."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from adaptmed.bank.format import (
    INFO,
    REJECTS,
    ROWS,
    BankInfo,
    Kind,
    Plan,
    StoredImages,
    StoredTexts,
)
from adaptmed.bank.layout import Layout
from adaptmed.bank.shards import Shard
from adaptmed.bank.write import read_shards
from adaptmed.errors import BankError, sentence
from adaptmed.files import sha256_of, write_json, written_whole


def seal(
    folder: Path, plan: Plan, info: BankInfo, rows: pd.DataFrame, *, rejects: Iterable[Mapping[str, Any]] = ()
) -> BankInfo:
    """Write the rows, the rejects and last ``bank.json``: from then on the bank is whole.

    Args:
        folder: Of the bank, all of whose shards are whole.
        plan: It was made by.
        info: What is known of the manifest; everything else is filled in here.
        rows: Of the manifest, with ``image_index`` and ``text_index``: numbers of the distinct images and texts as
            they were given to the shards, -1 without. Of volumes the number of the first slice is written, and a column
            ``slices``.
        rejects: Rows that the manifest itself left out, each with ``row`` and ``reason``.

    Returns:
        The facts as written.

    Raises:
        BankError: No row, or of a bank with images no image, was readable.
    """
    kinds: tuple[Kind, Kind] = ("image", "text")
    images, texts = (
        read_shards(folder, kind, count=int(rows[f"{kind}_index"].max()) + 1, shard_size=plan.shard_size_of(kind))
        for kind in kinds
    )
    reasons = {number: reason for shard in images for number, reason in shard.rejects}
    kept, left_out = _without_rejects(rows, reasons)
    if plan.volumes:
        kept = _numbered_by_slices(kept, [count for shard in images for count in shard.slices])
    left_out = [{"row": reject["row"], "image": None, "reason": reject["reason"]} for reject in rejects] + left_out
    if len(kept) == 0 or (images and all(shard.count == 0 for shard in images)):
        got = f"{len(left_out)} rejected rows, the first: {left_out[0]['reason']}" if left_out else "no rows"
        fix = f"Run `adaptmed check` on {info.manifest}, then delete {folder}."
        raise BankError(sentence(str(folder), expected="at least one readable row", got=got, fix=fix))
    stored_images, stored_texts = _stored_images(plan, images), _stored_texts(plan, texts)
    info = replace(
        info,
        images=stored_images,
        texts=stored_texts,
        rows=len(kept),
        rejected=len(left_out),
        layout=plan.layout,
        dtype=plan.dtype,
        precision=plan.precision,
        shards=images + texts,
        notes=(*info.notes, *_notes(plan, stored_images, stored_texts, len(left_out))),
    )
    return _write(folder, info, kept, left_out)


def _without_rejects(rows: pd.DataFrame, reasons: Mapping[int, str]) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    index = rows["image_index"].to_numpy()
    rejected = np.isin(index, list(reasons))
    left_out = [
        {"row": _plain(row), "image": image, "reason": reasons[number]}
        for row, image, number in zip(*_columns(rows[rejected], "row", "image", "image_index"), strict=True)
    ]
    moved = index - np.searchsorted(np.array(sorted(reasons), dtype=np.int64), index)
    return rows.assign(image_index=moved)[~rejected].reset_index(drop=True), left_out


def _numbered_by_slices(rows: pd.DataFrame, slices: list[int]) -> pd.DataFrame:
    """Replace the number of each row's volume by that of its first slice, and say how many slices it has."""
    volume = rows["image_index"].to_numpy()
    first = np.append(np.cumsum([0, *slices[:-1]]), -1)  # the last is that of volume -1: none
    return rows.assign(image_index=first[volume], slices=np.append(slices, 0)[volume])


def _columns(rows: pd.DataFrame, *names: str) -> list[list[Any]]:
    return [rows[name].tolist() if name in rows else [None] * len(rows) for name in names]


def _plain(value: object) -> object:
    return value if isinstance(value, int | str) else str(value)


def _stored_images(plan: Plan, shards: tuple[Shard, ...]) -> StoredImages | None:
    source, key = plan.image, plan.key("image")
    if source is None or source.preprocessing is None or key is None:
        return None
    filled = next(shard for shard in shards if shard.grid is not None)
    return StoredImages(
        name=source.name,
        fingerprint=source.fingerprint,
        token_key=key,
        parameters=source.parameters,
        preprocessing=source.preprocessing,
        width=filled.width,
        grid=filled.grid or (),
        prefix=filled.prefix,
        count=sum(shard.count for shard in shards),
        lora=source.lora,
        taps=filled.taps,
        pixels=plan.pixels,
        own_size=plan.own_size,
        plane=source.plane,
        window=source.window,
        masked_views=len(source.mask_seeds),
        mask_ratio=source.mask_ratio,
    )


def _stored_texts(plan: Plan, shards: tuple[Shard, ...]) -> StoredTexts | None:
    source, key = plan.text, plan.key("text")
    if source is None or source.max_tokens is None or key is None:
        return None
    count = sum(shard.count for shard in shards)
    return StoredTexts(
        name=source.name,
        fingerprint=source.fingerprint,
        token_key=key,
        parameters=source.parameters,
        max_tokens=source.max_tokens,
        width=shards[0].width,
        count=count,
        truncated_share=sum(shard.truncated for shard in shards) / count,
        lora=source.lora,
    )


def _notes(plan: Plan, images: StoredImages | None, texts: StoredTexts | None, rejected: int) -> list[str]:
    notes, layout = [], Layout.parse(plan.layout)
    if rejected:
        notes.append(
            f"{rejected} rows were left out, see {REJECTS}. The same `adaptmed embed` again takes in images that were "
            "mended since; a mended table needs another --out."
        )
    if images is not None and layout.kind == "grid" and min(images.grid) < layout.size:
        grid = " x ".join(map(str, images.grid))
        notes.append(f"The encoder's grid is kept at {grid}: it is smaller than {layout.size} x {layout.size}.")
    if texts is not None and texts.truncated_share > 0:
        notes.append(f"{texts.truncated_share:.1%} of the texts were cut at {texts.max_tokens} tokens.")
    return notes


def _write(folder: Path, info: BankInfo, rows: pd.DataFrame, rejects: list[dict[str, Any]]) -> BankInfo:
    with written_whole(folder / ROWS) as temporary:
        rows.to_parquet(temporary, index=False)
    with written_whole(folder / REJECTS) as temporary:
        temporary.write_text("".join(json.dumps(reject) + "\n" for reject in rejects), encoding="utf-8")
    info = replace(info, rows_file_sha256=sha256_of(folder / ROWS))
    write_json(folder / INFO, asdict(info))
    return info
