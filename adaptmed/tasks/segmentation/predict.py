"""From image files to mask files: a tuned run reads pictures or volumes and writes masks in their geometry."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Integer
from torch import Tensor

from adaptmed.adaptor.model import Adaptor
from adaptmed.adaptor.saving import TENSOR_FILE, find_adaptor
from adaptmed.bank.layout import Layout, arrange_image
from adaptmed.data.images import prepare, read_image
from adaptmed.data.mask_labels import as_values
from adaptmed.data.masks import write_mask
from adaptmed.data.volumes.grids import planes_in
from adaptmed.data.volumes.reading import Volume, as_grey, is_volume, read_volume, slices_to_input
from adaptmed.encoders import tokens_and_taps
from adaptmed.errors import InputError, sentence
from adaptmed.files import sha256_of, write_text_whole
from adaptmed.runs.folder import open_run
from adaptmed.runs.processes import device_of
from adaptmed.tasks.segmentation.decoder_file import TENSORS, DecoderFacts, load_decoder
from adaptmed.tasks.segmentation.logits import classes_in_source, predict_pictures, predict_volume
from adaptmed.tasks.segmentation.model import Segmenter, Windows
from adaptmed.tasks.segmentation.windows.across import Across, places_across
from adaptmed.types import ImageEncoder, Preprocessing, Tokens

REJECTS, LABELS = "rejects.jsonl", "labels.json"
NIFTI = (".nii.gz", ".nii")
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Predictor:
    """A tuned run in memory.

    Attributes:
        model: Decoder and fusion; it reads Tokens and taps.
        encoder: The image encoder, with its LoRA where it has some.
        inputs: How images become its input.
        shown: How the decoder sees them.
        layout: How its Tokens are laid out.
        facts: What the decoder reads and says.
        device: Where everything is.
    """

    model: Segmenter
    encoder: ImageEncoder
    inputs: Preprocessing
    shown: Preprocessing
    layout: Layout
    facts: DecoderFacts
    device: str

    @classmethod
    def load(cls, run: Path, *, device: str = "auto") -> "Predictor":
        """Read a run of ``adaptmed finetune --task segmentation`` and load its image encoder.

        Raises:
            InputError: There is no such run, or it is damaged.
            FingerprintError: The encoder's weights are not those it was trained with.
        """
        decoder, facts = load_decoder(run)
        adaptor = Adaptor.from_pretrained(run, load_encoders=False)
        encoder = adaptor.encoders.load_image()
        where = device_of(device)
        encoder.module.to(where)
        model = Segmenter(decoder, fusion=adaptor.fusion).eval().to(where)
        inputs, layout = facts.inputs(adaptor.encoders.image_record.inputs), Layout.parse(adaptor.encoders.layout)
        return cls(model, encoder, inputs, facts.shown(inputs), layout, facts, device)

    @property
    def volumes(self) -> bool:
        """Whether it reads volumes; else pictures."""
        return self.facts.plane is not None

    def predict(self, path: Path, out: Path) -> None:
        """Write the mask of one image: PNG for a picture, NIfTI for a volume, in its own geometry.

        Raises:
            InputError: The image cannot be read, or is a volume where pictures were learnt, or the reverse.
        """
        if is_volume(path) != self.volumes:
            expected, got = ("a volume", "a picture") if self.volumes else ("a picture", "a volume")
            fix = f"This run was trained on {expected.removeprefix('a ')}s."
            raise InputError(sentence(str(path), expected=expected, got=got, fix=fix))
        settings = self.facts.settings
        if not self.volumes:
            image = read_image(path)
            windows = self._encoded(prepare(image, self.inputs)[None])
            windows = replace(windows, pixels=prepare(image, self.shown)[None])
            logits = predict_pictures(self.model, windows, settings, device=self.device)[0]
            write_mask(out, self._values(logits, (image.shape[0], image.shape[1])))
            return
        volumes = [read_volume(path, plane) for plane in planes_in(self.facts.plane or "axial")]
        logits = predict_volume(self.model, self._sliced(volumes), settings, device=self.device)
        _, height, width = volumes[0].values.shape
        write_mask(out, self._values(logits, (height, width)), volumes[0])

    def _sliced(self, volumes: Sequence[Volume]) -> Windows:
        """All slices of a volume, which stands here once for each plane that is read of it."""
        greys = [as_grey(volume, self.facts.window) for volume in volumes]
        first, *others = (self._encoded(slices_to_input(grey, self.inputs)) for grey in greys)
        offsets, shape = np.arange(len(greys[0])), greys[0].shape
        across = []
        for windows, volume in zip(others, volumes[1:], strict=True):
            assert windows.tokens is not None
            assert windows.tokens.grid is not None
            places = places_across(shape, offsets, volume.plane, self.inputs, windows.tokens.grid)
            across.append(Across(windows.tokens, places))
        pixels = slices_to_input(greys[0], self.shown)
        return replace(first, depth=len(offsets), pixels=pixels, across=(tuple(across),) if across else ())

    def _encoded(self, pixels: Float[Tensor, "n 3 height width_px"]) -> Windows:
        """Encode pictures or slices, a batch at a time."""
        where, size = device_of(self.device), self.facts.settings.pictures_per_batch
        parts: list[Tokens] = []
        maps: list[Sequence[Tensor]] = []
        autocast = torch.autocast(where.type, torch.bfloat16, enabled=self.facts.settings.precision == "bf16")
        with torch.inference_mode(), autocast:
            for part in pixels.split(size):
                moved = part.to(where)
                tokens, taps = self._encode(moved)
                parts.append(arrange_image(tokens, self.layout).to("cpu", torch.float32))
                maps.append([tap.float().cpu() for tap in taps[:-1]])
        values, pooled = torch.cat([t.values for t in parts]), torch.cat([t.pooled for t in parts])
        tokens = Tokens(values, torch.cat([t.valid for t in parts]), pooled, parts[0].grid, parts[0].prefix)
        taps = tuple(torch.cat(level) for level in zip(*maps, strict=True))
        return Windows(self.shown.image_size_px, tokens=tokens, taps=taps)

    def _encode(self, pixels: Float[Tensor, "n 3 height width_px"]) -> tuple[Tokens, Sequence[Tensor]]:
        if not self.facts.taps:
            return self.encoder(pixels), ()
        return tokens_and_taps(self.encoder, pixels, self.facts.taps)

    def _values(self, logits: Float[Tensor, "class *size"], size_px: tuple[int, int]) -> Integer[np.ndarray, "*sides"]:
        return as_values(classes_in_source(logits, size_px, self.shown), self.facts.labels)


def predict(
    run: Path,
    images: Mapping[str, Path],
    out: Path,
    *,
    device: str = "auto",
    progress: Progress = lambda *_: None,
) -> list[dict[str, str]]:
    """Write a mask for every image; those that are there already are not computed again.

    An image that cannot be read is listed in ``rejects.jsonl`` and costs no other. ``labels.json`` says what the values
    in the masks mean.

    Args:
        run: Run folder of ``adaptmed finetune --task segmentation``.
        images: Name → file, or folder of a DICOM series; a mask is written under its image's name.
        out: Folder to write.
        device: ``auto``, ``cpu`` or ``cuda``.
        progress: Called with images done and all images.

    Returns:
        The rejects: ``image``, ``reason``.

    Raises:
        InputError: The run has no decoder, two images would write the same mask, ``out`` holds predictions of another
            run, or no image at all can be read.
    """
    predictor = Predictor.load(run, device=device)
    targets = mask_names(images, volumes=predictor.volumes)
    weights = {"decoder_sha256": sha256_of(run / TENSORS), "adaptor_sha256": sha256_of(find_adaptor(run) / TENSOR_FILE)}
    open_run(out, {"command": "predict", **weights})
    named = {str(value): name for value, name in predictor.facts.labels.items()}
    write_text_whole(out / LABELS, json.dumps(named, indent=2) + "\n")
    rejects: list[dict[str, str]] = []
    for done, (name, path) in enumerate(images.items(), start=1):
        if not (out / targets[name]).exists():
            try:
                predictor.predict(path, out / targets[name])
            except InputError as error:
                rejects.append({"image": name, "reason": str(error)})
        progress(done, len(images))
    write_text_whole(out / REJECTS, "".join(json.dumps(reject) + "\n" for reject in rejects))
    if len(rejects) == len(images):
        got = f"none of {len(images)}; the first: {rejects[0]['reason']}" if rejects else "no image at all"
        raise InputError(sentence("images", expected="an image that can be read", got=got, fix="Check the paths."))
    return rejects


def mask_names(images: Iterable[str], *, volumes: bool) -> dict[str, str]:
    """Name the mask of every image: its own name, with the suffix of a mask, below the folder that masks go to.

    Args:
        images: Names. Of absolute ones the root is left out, and of others the steps upwards.
        volumes: Whether they are volumes.

    Raises:
        InputError: Two images would write the same mask.

    Example:
        >>> mask_names(["a/1.jpg", "a/2.dcm"], volumes=False), mask_names(["ct.nii", "series"], volumes=True)
        ({'a/1.jpg': 'a/1.png', 'a/2.dcm': 'a/2.png'}, {'ct.nii': 'ct.nii.gz', 'series': 'series.nii.gz'})
        >>> mask_names(["/data/1.jpg", "../b/2.jpg", "1.2.840.7"], volumes=False)
        {'/data/1.jpg': 'data/1.png', '../b/2.jpg': 'b/2.png', '1.2.840.7': '1.2.840.7.png'}
    """
    names: dict[str, str] = {}
    taken: dict[str, str] = {}
    for image in images:
        mask = _mask_name(image, volumes=volumes)
        if mask in taken:
            expected, fix = (
                f"another name than {taken[mask]}, whose mask is {mask} too",
                "Predict them into two folders.",
            )
            raise InputError(sentence(image, expected=expected, got="the same", fix=fix))
        names[image], taken[mask] = mask, image
    return names


def _mask_name(image: str, *, volumes: bool) -> str:
    path = Path(image)
    path = Path(*(part for part in path.parts if part not in (path.anchor, "..")))
    name = str(path)
    if volumes:
        stem = next((name[: -len(suffix)] for suffix in NIFTI if name.lower().endswith(suffix)), None)
        return f"{stem or name}.nii.gz"
    end = path.suffix
    return f"{name}.png" if end[1:].isdigit() else str(path.with_suffix(".png"))  # files may be named by a UID
