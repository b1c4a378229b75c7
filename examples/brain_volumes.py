"""Real volumes and masks through the commands: 20 slabs of the MNI152 brain template, with grey and white matter.

The template is the T1 image that the nilearn package ships with its grey and white matter maps: nothing is downloaded.
It is ONE brain, averaged over many people, and train, validate and test are slabs of that same brain. This checks the
path from volumes to masks on real data; it is no benchmark, and its numbers say nothing about patients. The template is
symmetric as well: it cannot show whether left and right are kept apart.

The masks follow from the maps by a rule: where both together are over one half, a voxel is tissue, and of the kind
whose map is larger there. (Each map over one half by itself would draw a seam of background between the two.)

The adaptor is pre-trained on single slices of the same slabs, each with a true sentence; it never sees a test slab.

    python examples/brain_volumes.py --out runs/brain-volumes
"""

import csv
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
from brain_slices import PLANES, TISSUES, Volumes, describe, load_volumes, where
from cyclopts import run
from jaxtyping import Float, UInt8
from PIL import Image

from adaptmed.data.volumes.reading import read_volume

NOTE = "One averaged brain, split by slabs: a check of the path, no benchmark."
AXIAL = PLANES[2]
SPLITS = ["train"] * 14 + ["validate"] * 2 + ["test"] * 4
SLICES, PITCH = 5, 7  # of 1 mm, per slab and from slab to slab; the two between keep neighbouring slabs apart
TISSUE, GREY, WHITE = 0.5, 1, 2  # probability of both together that makes tissue, and the labels in the masks
LABELS = ("1=grey matter", "2=white matter")
WINDOW = ("127.5", "255")  # level and width that show every volume as its slices are: 0 to 255
SIZE, STEPS = "112", "90"  # side of the encoder's input, steps of every trained decoder


class Slab(NamedTuple):
    """A piece of the brain between two axial planes; ``first_mm`` is the height of its lowest slice."""

    t1: UInt8[np.ndarray, "x y z"]
    labels: UInt8[np.ndarray, "x y z"]
    affine: Float[np.ndarray, "4 4"]
    first_mm: float


def label(grey: Float[np.ndarray, "x y z"], white: Float[np.ndarray, "x y z"]) -> UInt8[np.ndarray, "x y z"]:
    """Turn the maps into labels: 0 background, 1 grey matter, 2 white matter."""
    kind = np.where(white > grey, WHITE, GREY)
    return np.where(grey + white > TISSUE, kind, 0).astype(np.uint8)


def slabs(volumes: Volumes) -> Iterator[Slab]:
    """Cut the brain from below, each slab with the affine that leaves it where it was."""
    labels = label(volumes.grey, volumes.white)
    t1 = np.rint(255 * np.clip(volumes.t1, 0, 1)).astype(np.uint8)
    for number in range(len(SPLITS)):
        first_mm = AXIAL.first_mm + number * PITCH
        start = round(first_mm - volumes.origin[AXIAL.axis])
        affine = np.eye(4)
        affine[:3, 3] = (*volumes.origin[:2], first_mm)
        yield Slab(t1[..., start : start + SLICES], labels[..., start : start + SLICES], affine, first_mm)


def shares(labels: UInt8[np.ndarray, "*size"]) -> tuple[float, float]:
    """Return the share of the tissue that is grey matter, and the share of all that is tissue."""
    tissue = np.count_nonzero(labels)
    return float((labels == GREY).sum() / tissue), tissue / labels.size


def describe_slab(slab: Slab, rng: np.random.Generator) -> str:
    """Say what is true of a slab: how thick it is, where it lies, its tissue."""
    grey, area = (round(100 * share) for share in shares(slab.labels))
    place = where(AXIAL, slab.first_mm + (SLICES - 1) / 2)
    tissue = rng.choice(TISSUES).format(grey=grey, white=100 - grey)
    return f"Slab of {SLICES} axial slices, its middle {place}; {tissue} Tissue fills {area} % of the slab."


def write_slices(out: Path, volume: str, slab: Slab, rng: np.random.Generator) -> Iterator[dict[str, str]]:
    """Write the slices of a volume as the encoder will see them there, and say what is true of each."""
    for place, picture in enumerate(read_volume(out / volume).values):
        name = f"slices/{Path(volume).name.removesuffix('.nii.gz')}_{place}.png"
        Image.fromarray(picture.astype(np.uint8)).save(out / name)
        text = describe(AXIAL, slab.first_mm + place, shares(slab.labels[..., place]), rng)
        yield {"image": name, "text": text}


def prepare(out: Path) -> tuple[Path, Path]:
    """Write slabs, masks and slices; return the manifests of slabs and of slices, whose ``patient`` is the slab."""
    rng = np.random.default_rng(0)
    volumes: list[Mapping[str, Any]] = []
    slices: list[Mapping[str, Any]] = []
    for folder in ("volumes", "masks", "slices"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for number, (slab, split) in enumerate(zip(slabs(load_volumes()), rng.permutation(SPLITS), strict=True)):
        names = {"image": f"volumes/slab_{number:02d}.nii.gz", "mask": f"masks/slab_{number:02d}.nii.gz"}
        for name, values in zip(names.values(), (slab.t1, slab.labels), strict=True):
            image = nibabel.Nifti1Image(values, slab.affine)
            image.header.set_xyzt_units("mm")
            nibabel.save(image, out / name)
        shared = {"patient": f"slab-{number:02d}", "split": str(split)}
        volumes.append(names | {"text": describe_slab(slab, rng)} | shared)
        if split != "test":
            slices += [row | shared for row in write_slices(out, names["image"], slab, rng)]
    return write_table(out / "manifest.csv", volumes), write_table(out / "slices.csv", slices)


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows as a table."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return path


def main(*, out: Path = Path("runs/brain-volumes"), prepare_only: bool = False) -> None:
    """Cut the MNI152 template into 20 slabs with masks and true sentences and run the commands on them.

    Args:
        out: Folder for the slabs, the banks, the adaptor, the study, the decoder and its masks.
        prepare_only: Write slabs, slices and manifests, and stop.
    """
    print(NOTE)
    manifest, slices = (str(path) for path in prepare(out))
    print(f"20 slabs: {manifest}; slices of those that are not for test: {slices}")
    names = ("slices-bank", "adaptor", "volumes-bank", "study", "tuned", "predicted")
    slices_bank, adaptor, bank, study, tuned, predicted = (str(out / name) for name in names)
    encoders = ["--image-encoder", "bundled:dinov2-small", "--text-encoder", "bundled:minilm-l6"]
    encoders += ["--image-size-px", SIZE, "--fit", "pad"]
    masks = ["--task", "segmentation", "--mask-labels", *LABELS, "--steps", STEPS]
    commands = (
        ["check", manifest, "--mask-labels", *LABELS],
        ["embed", slices, *encoders, "--out", slices_bank],
        ["pretrain", slices_bank, "--method", "adaptor", "--out", adaptor],
        ["embed", manifest, *encoders, "--window", *WINDOW, "--out", bank],
        ["study", bank, "--adaptor", adaptor, *masks, "--fractions", "0.1", "1", "--seeds", "2", "--out", study],
        ["finetune", adaptor, bank, *masks, "--out", tuned],
        ["predict", tuned, manifest, "--split", "test", "--out", predicted],
    )
    for command in () if prepare_only else commands:
        print("adaptmed", *command, flush=True)
        subprocess.run([sys.executable, "-m", "adaptmed", *command], check=True)
    print(NOTE)


if __name__ == "__main__":
    run(main)
