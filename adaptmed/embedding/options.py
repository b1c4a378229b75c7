"""How a bank is made: the options of embedding, checked before anything is computed."""

import os
import re
from dataclasses import dataclass, field, replace

import torch

from adaptmed.adaptor.records import DEFAULT_MAX_TOKENS
from adaptmed.bank import DType, Layout
from adaptmed.data.volumes.grids import Planes
from adaptmed.data.volumes.reading import check_window
from adaptmed.errors import InputError, sentence
from adaptmed.runs.precision import Precision, usual_precision
from adaptmed.runs.processes import device_of
from adaptmed.types import Fit, ImageEncoder, Preprocessing, TextEncoder


@dataclass(frozen=True)
class EmbedOptions:
    """How a bank is made.

    Attributes:
        layout: Which tokens are kept.
        dtype: Of the stored features; with ``int8`` and ``int4`` every picture, slice or text has a scale per channel,
            and pooled vectors are float16.
        precision: Of the computation: ``bf16`` is autocast, ``fp32`` is exact; by default what the machine computes
            fast.
        max_tokens: Where texts are cut; ``None`` is the encoder's limit or 256, whichever is smaller.
        fit: How images are made square; ``None``: in the encoder's own way, but volumes by ``pad`` where that is
            ``crop``, which leaves out what is to be segmented.
        batch_size: Items per forward pass.
        shard_size: Distinct images or texts per file; ``None`` is 256, or where images are volumes 4.
        workers: Threads that read images while the encoder computes; of volumes at most 4 are in memory at once.
        device: ``auto`` takes the first CUDA device, else the CPU; or ``cpu``, ``cuda``, ``cuda:N``, ``mps``.
        strict: Raise at the first unreadable image instead of leaving its rows out.
        taps: Feature maps for decoders, as many as ``encoder.taps`` is asked for; the deepest is not stored, because
            the fused grid takes its place. 0 stores none.
        pixels: Whether what the encoder sees is stored, in 8 bits: of pictures its input, of volumes the slices at
            their own size; ``None``: of volumes and beside masked views, whose hidden patches are predicted, not of
            other pictures.
        masked_views: Passes of every picture of which the encoder sees a part of the layout's cells.
        mask_ratio: Share of the cells that they hide, in [0, 1).
        plane: Of the slices of volumes; ``three`` encodes axial, coronal and sagittal ones, and a decoder of axial
            slices reads the features of all three at every place.
        window: ``(level, width)`` that volumes are shown with; ``None``: from percentiles (``data.volumes.as_grey``).

    Raises:
        InputError: A count is out of range, a single tap, a window without width, codes for pooled vectors alone, or
            there is no such device.
    """

    layout: Layout = field(default_factory=Layout)
    dtype: DType = "float16"
    precision: Precision = field(default_factory=lambda: usual_precision("auto"))
    max_tokens: int | None = None
    fit: Fit | None = None
    batch_size: int = 64
    shard_size: int | None = None
    workers: int = field(default_factory=lambda: min(8, os.cpu_count() or 1))
    device: str = "auto"
    strict: bool = False
    taps: int = 0
    pixels: bool | None = None
    masked_views: int = 0
    mask_ratio: float = 0.75
    plane: Planes = "axial"
    window: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "shard_size", "workers"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise InputError(sentence(name, expected="at least 1", got=count, fix="Pass 1 or more."))
        if self.taps < 0 or self.taps == 1:
            fix = "Pass 4; the deepest of them is not stored."
            raise InputError(sentence("taps", expected="0 or at least 2", got=self.taps, fix=fix))
        if self.masked_views < 0:
            raise InputError(sentence("masked_views", expected="at least 0", got=self.masked_views, fix="Pass 4."))
        if self.dtype in ("int8", "int4") and self.layout.kind == "pooled":
            expected, fix = "float16, bfloat16 or float32 with the layout pooled", "Pass --dtype float16."
            got = f"{self.dtype}, whose scales would be as large as the vectors"
            raise InputError(sentence("dtype", expected=expected, got=got, fix=fix))
        if self.window is not None:
            check_window(self.window)
        _require_device(self.device)

    @property
    def torch_device(self) -> torch.device:
        """The device that ``device`` names."""
        return device_of(self.device)

    def preprocessing_of(self, encoder: ImageEncoder, *, volumes: bool) -> Preprocessing:
        """Return the encoder's input facts with this ``fit``, or with the usual one of pictures or volumes."""
        own = encoder.preprocessing
        usual: Fit = "pad" if volumes and own.fit == "crop" else own.fit
        return replace(own, fit=self.fit or usual)

    def max_tokens_of(self, encoder: TextEncoder) -> int:
        """Return where texts are cut for this encoder.

        Raises:
            InputError: ``max_tokens`` is below 2 or over the encoder's limit.
        """
        if self.max_tokens is None:
            return min(encoder.max_tokens, DEFAULT_MAX_TOKENS)
        if not 2 <= self.max_tokens <= encoder.max_tokens:
            expected = f"2 to {encoder.max_tokens}, the limit of {encoder.name}"
            fix = "Pass a number in this range."
            raise InputError(sentence("max_tokens", expected=expected, got=self.max_tokens, fix=fix))
        return self.max_tokens


def _require_device(name: str) -> None:
    found = re.fullmatch(r"auto|cpu|mps|cuda(?::(\d+))?", name)
    if found is None:
        fix = "Choose one of them."
        raise InputError(sentence("device", expected="auto, cpu, cuda, cuda:N or mps", got=repr(name), fix=fix))
    seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    beside = None
    if name == "mps" and not torch.backends.mps.is_available():
        beside = "no MPS"
    elif name.startswith("cuda") and int(found[1] or 0) >= seen:
        beside = f"{seen} CUDA devices, numbered from 0" if seen else "no CUDA device"
    if beside is not None:
        expected, fix = "a device that torch sees", "Use --device auto; `adaptmed doctor` tells what torch sees."
        raise InputError(sentence("device", expected=expected, got=f"{name!r} beside {beside}", fix=fix))
