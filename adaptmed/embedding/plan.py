"""What a bank is made of: the distinct images and texts of a manifest, and the plan that names every source."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from adaptmed.adaptor.masked import kept_cells
from adaptmed.adaptor.records import inside
from adaptmed.bank import Plan, TokenSource
from adaptmed.bank.format import Kind
from adaptmed.data.manifest import Manifest
from adaptmed.data.volumes.reading import is_volume
from adaptmed.embedding.options import EmbedOptions
from adaptmed.errors import InputError, sentence
from adaptmed.types import ImageEncoder, Preprocessing, TextEncoder


@dataclass(frozen=True)
class Items:
    """Distinct images and texts, numbered by their first row, and the number of each row (-1: none).

    Attributes:
        images: Files and folders, by the first name of each: a link may have an ending that its target lacks.
        image_index: Of every row.
        texts: Texts.
        text_index: Of every row.
        volumes: Whether the images are volumes; pictures otherwise.
    """

    images: list[Path]
    image_index: NDArray[np.int64]
    texts: list[str]
    text_index: NDArray[np.int64]
    volumes: bool = False

    @classmethod
    def of(cls, manifest: Manifest, image_encoder: object, text_encoder: object) -> "Items":
        """Number what a manifest gives these encoders.

        Raises:
            InputError: Both encoders are missing, or one has nothing to encode, or some images are pictures and others
                volumes.
        """
        if image_encoder is None and text_encoder is None:
            fix = "Pass --image-encoder, --text-encoder or both."
            raise InputError(sentence("encoders", expected="at least one encoder", got="none", fix=fix))
        names, image_index = _distinct(manifest, "image", image_encoder)
        paths = [manifest.root / name for name in names]
        same, _ = pd.factorize(np.array([_resolved(path) for path in paths], dtype=object))
        texts, text_index = _distinct(manifest, "text", text_encoder)
        images = [paths[place] for place in np.unique(same, return_index=True)[1]]
        return cls(images, np.append(same, -1)[image_index], texts, text_index, _are_volumes(manifest.path, images))


def _resolved(path: Path) -> str:
    try:
        return str(path.resolve())
    except (OSError, RuntimeError, ValueError):  # a loop of links or a null byte: reading it says so
        return str(path)


def _are_volumes(table: Path, images: Sequence[Path]) -> bool:
    """Tell volumes from pictures by their paths; what is not there is neither, and is rejected when it is read."""
    found: dict[str, list[Path]] = {"volume": [], "picture": []}
    for path in images:
        try:
            if is_volume(path) or path.exists():
                found["volume" if is_volume(path) else "picture"].append(path)
        except OSError:  # a name that is too long, a folder that may not be read
            continue
    volumes, pictures = found["volume"], found["picture"]
    if volumes and pictures:
        expected, fix = "pictures or volumes", "Make a table and a bank of each."
        got = f"{len(pictures)} pictures ({pictures[0].name}, ...) and {len(volumes)} volumes ({volumes[0].name}, ...)"
        raise InputError(sentence(str(table), expected=expected, got=got, fix=fix))
    return bool(volumes)


def _distinct(manifest: Manifest, column: Kind, encoder: object) -> tuple[list[str], NDArray[np.int64]]:
    frame = manifest.frame
    if encoder is None:
        return [], np.full(len(frame), -1, dtype=np.int64)
    values = frame[column] if column in frame else pd.Series("", index=frame.index)
    codes, names = pd.factorize(values.where(values.str.strip() != ""))
    if not len(names):
        fix = f"Leave out --{column}-encoder, or name the column `{column}`."
        raise InputError(sentence(column, expected=f"a {column} in at least one row", got="none", fix=fix))
    return [str(name) for name in names], codes.astype(np.int64)


def plan_of(
    manifest: Manifest,
    items: Items,
    image_encoder: ImageEncoder | None,
    text_encoder: TextEncoder | None,
    options: EmbedOptions,
) -> Plan:
    """Say what a bank of these items is made of.

    Raises:
        InputError: A plane or a window is given where no image is a volume, or masked views that these images, this
            encoder or this layout cannot have.
    """
    _refuse_for_volumes(items, options)
    views = _check_masked_views(items, image_encoder, options)
    image = text = None
    if image_encoder is not None:
        inputs = options.preprocessing_of(image_encoder, volumes=items.volumes)
        image = _source(image_encoder, preprocessing=inputs)
        if items.volumes:
            window = None if options.window is None else (float(options.window[0]), float(options.window[1]))
            image = replace(image, plane=options.plane, window=window)
        if views:
            image = replace(image, mask_seeds=tuple(range(views)), mask_ratio=float(options.mask_ratio))
    if text_encoder is not None:
        text = _source(text_encoder, max_tokens=options.max_tokens_of(text_encoder))
    pixels = bool(items.images) and (items.volumes or views > 0 if options.pixels is None else options.pixels)
    if options.plane == "three" and not pixels:
        expected, fix = "the pixels of volumes beside three planes", "Leave --no-pixels out."
        raise InputError(sentence("pixels", expected=expected, got="none", fix=fix))
    rows_sha256 = hashlib.sha256(manifest.frame.to_csv(index=False).encode()).hexdigest()
    return Plan(
        *(image, text, manifest.sha256, rows_sha256),
        layout=str(options.layout),
        dtype=options.dtype,
        precision=options.precision,
        shard_size=options.shard_size or (4 if items.volumes else 256),
        images_sha256=hashlib.sha256(items.image_index.tobytes()).hexdigest(),
        taps=options.taps if items.images else 0,
        pixels=pixels,
        own_size=pixels and items.volumes,
    )


def _refuse_for_volumes(items: Items, options: EmbedOptions) -> None:
    for name, given in (("plane", options.plane != "axial"), ("window", options.window is not None)):
        if given and not items.volumes:
            got, fix = "none among the images", f"Leave --{name} out."
            raise InputError(sentence(name, expected="volumes", got=got, fix=fix))


def _check_masked_views(items: Items, encoder: ImageEncoder | None, options: EmbedOptions) -> int:
    """Return how many masked views there are to be, when these images can have them."""
    if options.masked_views == 0:
        return 0
    if encoder is None or items.volumes:
        got = "no image encoder" if encoder is None else "volumes"
        expected, fix = "pictures and an image encoder", "Leave --masked-views out."
        raise InputError(sentence("masked_views", expected=expected, got=got, fix=fix))
    kept_cells(encoder, options.layout, ratio=options.mask_ratio)
    return options.masked_views


def _source(
    encoder: ImageEncoder | TextEncoder, *, preprocessing: Preprocessing | None = None, max_tokens: int | None = None
) -> TokenSource:
    parameters, lora = inside(encoder)
    return TokenSource(encoder.name, encoder.fingerprint(), preprocessing, max_tokens, lora, parameters=parameters)
