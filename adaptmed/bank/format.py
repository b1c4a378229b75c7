"""What stands on disk: file names, the plan a bank is made by, the facts a whole bank states."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from adaptmed.bank.files import other_form, read_json
from adaptmed.bank.shards import Shard, StoredTap
from adaptmed.errors import BankError, sentence
from adaptmed.types import Preprocessing

SCHEMA = 1
PLAN, INFO, ROWS, REJECTS, SHARDS = "plan.json", "bank.json", "rows.parquet", "rejects.jsonl", "shards"
Kind = Literal["image", "text"]
_TEXTS_PER_VOLUME = 64


@dataclass(frozen=True)
class TokenSource:
    """Everything that decides the numbers of one modality, apart from layout and dtype.

    Attributes:
        name: The encoder's full name; for people, no part of the token key.
        fingerprint: Of the encoder's frozen weights.
        preprocessing: How images became pixels; ``None`` for text.
        max_tokens: Where texts were cut; ``None`` for images.
        lora: State of the LoRA inside the encoder; ``None`` without.
        mask_seeds: Seeds of masked views; empty without.
        parameters: Number of frozen parameters; for people, no part of the token key.
        plane: Of the slices of volumes; ``None`` for pictures and text.
        window: ``(level, width)`` that volumes were shown with; ``None`` for percentiles, pictures and text.
        mask_ratio: Share of the cells that masked views hide; ``None`` without.
    """

    name: str
    fingerprint: str
    preprocessing: Preprocessing | None = None
    max_tokens: int | None = None
    lora: str | None = None
    mask_seeds: tuple[int, ...] = ()
    parameters: int = 0
    plane: str | None = None
    window: tuple[float, float] | None = None
    mask_ratio: float | None = None

    def token_key(self, *, layout: str, dtype: str) -> str:
        """Return the sha256 over all of this that decides numbers, with layout, dtype and the bank's schema.

        Example:
            >>> source = TokenSource("bundled:a", "0f" * 32, max_tokens=256)
            >>> key = source.token_key(layout="all", dtype="float16")
            >>> key == TokenSource("b", "0f" * 32, max_tokens=256).token_key(layout="all", dtype="float16")
            True
            >>> key == source.token_key(layout="all", dtype="float32")
            False
        """
        parts = asdict(self) | {"layout": layout, "dtype": dtype, "schema": SCHEMA}
        later = ("plane", "window", "mask_ratio")
        for name in ("name", "parameters", *(name for name in later if parts[name] is None)):
            del parts[name]
        return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True)
class Plan:
    """What a bank is being made of, written first: a run with another plan is refused.

    Attributes:
        image: Where image Tokens come from, or ``None``.
        text: Where text Tokens come from, or ``None``.
        manifest_sha256: Of the manifest's file.
        rows_sha256: Of the rows as read, so that other label options are another plan.
        layout: Name of the layout.
        dtype: Of the stored features.
        precision: Of the computation, ``bf16`` or ``fp32``.
        shard_size: Distinct pictures, volumes or texts per shard; of the texts beside volumes 64 times as many.
        images_sha256: Of the number of each row's distinct image, so that links that lead elsewhere are another plan.
        schema: Version of this format.
        taps: Taps of the encoder, all but the deepest stored; 0 for none.
        pixels: Whether what the encoder is shown is stored.
        own_size: Whether those pixels are slices at their own size, in one channel; else they are the encoder's input.
    """

    image: TokenSource | None
    text: TokenSource | None
    manifest_sha256: str
    rows_sha256: str
    layout: str = "grid8"
    dtype: str = "float16"
    precision: str = "bf16"
    shard_size: int = 256
    images_sha256: str = ""
    schema: int = SCHEMA
    taps: int = 0
    pixels: bool = False
    own_size: bool = False

    @property
    def volumes(self) -> bool:
        """Whether its images are volumes."""
        return self.image is not None and self.image.plane is not None

    def shard_size_of(self, kind: Kind) -> int:
        """Return the distinct images or texts per shard: beside volumes many more texts than volumes."""
        return self.shard_size * (_TEXTS_PER_VOLUME if self.volumes and kind == "text" else 1)

    def key(self, kind: Kind) -> str | None:
        """Return the token key of one modality, or ``None`` without it."""
        source = self.image if kind == "image" else self.text
        return None if source is None else source.token_key(layout=self.layout, dtype=self.dtype)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for json, the two token keys first."""
        return {"image_token_key": self.key("image"), "text_token_key": self.key("text")} | asdict(self)


@dataclass(frozen=True)
class StoredImages:
    """The facts of a bank's image Tokens; ``grid`` and ``prefix`` as in Tokens.

    ``count`` distinct pictures, or with ``plane`` slices of volumes, shown with ``window``. ``lora`` is the digest of
    the LoRA inside the encoder, which then stands in the bank's folder ``image_lora``. ``taps`` are the stored maps,
    shallow to deep, without the deepest one; ``pixels`` says whether what the encoder was shown is stored: its input,
    or with ``own_size`` the slices of volumes before they were brought to the input's size. Of every picture there are
    ``masked_views`` passes that hid the share ``mask_ratio`` of its cells, with the seeds 0, 1, ….
    """

    name: str
    fingerprint: str
    token_key: str
    parameters: int
    preprocessing: Preprocessing
    width: int
    grid: tuple[int, ...]
    prefix: int
    count: int
    lora: str | None = None
    taps: tuple[StoredTap, ...] = ()
    pixels: bool = False
    plane: str | None = None
    window: tuple[float, float] | None = None
    masked_views: int = 0
    mask_ratio: float | None = None
    own_size: bool = False


@dataclass(frozen=True)
class StoredTexts:
    """The facts of a bank's text Tokens; ``count`` distinct texts, ``truncated_share`` of them lost their end.

    ``lora`` is the digest of the LoRA inside the encoder, which then stands in the bank's folder ``text_lora``.
    """

    name: str
    fingerprint: str
    token_key: str
    parameters: int
    max_tokens: int
    width: int
    count: int
    truncated_share: float
    lora: str | None = None


@dataclass(frozen=True)
class BankInfo:
    """The facts of a whole bank, ``bank.json``, written last.

    Attributes:
        manifest: Path of the manifest.
        manifest_sha256: Of the manifest's file.
        labels: Label columns.
        class_column: Column of the class, or ``None``.
        classes: Class names in the order of the class numbers.
        has_patients: False when every row is its own patient.
        notes: What a reader should know.
        images: Of the image Tokens, or ``None``.
        texts: Of the text Tokens, or ``None``.
        rows: Kept rows.
        rejected: Rows left out, listed in ``rejects.jsonl``.
        rows_file_sha256: Of ``rows.parquet``.
        layout: Name of the layout.
        dtype: Of the stored features.
        precision: Of the computation.
        shards: Every shard, images first.
        schema: Version of this format.
    """

    manifest: str
    manifest_sha256: str
    labels: tuple[str, ...] = ()
    class_column: str | None = None
    classes: tuple[str, ...] = ()
    has_patients: bool = False
    notes: tuple[str, ...] = ()
    images: StoredImages | None = None
    texts: StoredTexts | None = None
    rows: int = 0
    rejected: int = 0
    rows_file_sha256: str = ""
    layout: str = "grid8"
    dtype: str = "float16"
    precision: str = "bf16"
    shards: tuple[Shard, ...] = field(default=(), repr=False)
    schema: int = SCHEMA

    def shards_of(self, kind: Kind) -> tuple[Shard, ...]:
        """Return the shards of one modality in order."""
        return tuple(shard for shard in self.shards if Path(shard.file).name.startswith(kind))

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read ``bank.json``.

        Raises:
            BankError: It is missing or cut, or of another schema or form.
        """
        facts = read_json(path)
        if facts.get("schema") != SCHEMA:
            fix = "Run `adaptmed embed` again into another --out."
            got = facts.get("schema")
            raise BankError(sentence(str(path), expected=f"bank schema {SCHEMA}", got=got, fix=fix))
        try:
            return cls.from_dict(facts)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise other_form(path, "the facts of a bank", error) from error

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> Self:
        """Build from plain json values."""
        images, texts = facts["images"], facts["texts"]
        parts: dict[str, Any] = {
            "images": None if images is None else _stored_images(images),
            "texts": None if texts is None else StoredTexts(**texts),
            "shards": tuple(Shard.from_dict(shard) for shard in facts["shards"]),
        }
        parts |= {name: tuple(facts[name]) for name in ("labels", "classes", "notes")}
        return cls(**{**facts, **parts})


def _stored_images(facts: Mapping[str, Any]) -> StoredImages:
    how = facts["preprocessing"]
    how = {name: tuple(value) if isinstance(value, list) else value for name, value in how.items()}
    window = facts.get("window")
    parts = {
        "preprocessing": Preprocessing(**how),
        "grid": tuple(facts["grid"]),
        "taps": StoredTap.all_of(facts.get("taps", ())),
        "window": None if window is None else tuple(window),
    }
    return StoredImages(**{**facts, **parts})
