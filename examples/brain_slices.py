"""Real pictures through the four commands: 600 slices of the MNI152 brain template, each with a true sentence.

The template is the T1 image that the nilearn package ships with its grey and white matter maps: nothing is downloaded.
It is ONE brain, averaged over many people, and train, validate and test are slabs of that same brain. This checks the
path from pictures to report on real data; it is no benchmark, and its numbers say nothing about patients.

    python examples/brain_slices.py --out runs/brain
"""

import csv
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from cyclopts import run
from jaxtyping import Float
from PIL import Image

NOTE = "One averaged brain, split by slabs: a check of the path, no benchmark."
SLABS, SLICES = 20, 10  # per plane, per slab
KEPT = 0.7  # share of a slab's width that is sliced; the rest keeps neighbouring slabs apart
LARGE, GREY = 0.30, 0.60  # share of the picture that is tissue, share of the tissue that is grey matter


class Plane(NamedTuple):
    """A way to cut the brain: voxel axis, the stretch that holds tissue, and the words for its two directions."""

    name: str
    axis: int
    first_mm: float
    last_mm: float
    negative: str
    zero: str
    positive: str


PLANES = (
    Plane("sagittal", 0, -66, 66, "left of the midline", "on the midline", "right of the midline"),
    Plane("coronal", 1, -102, 68, "behind the {ac}", "through the {ac}", "in front of the {ac}"),
    Plane("axial", 2, -60, 75, "below the {ac}", "at the level of the {ac}", "above the {ac}"),
)
OPENINGS = ("{plane} slice {place}", "{plane} section of the brain, {place}", "Brain in the {lower} plane, {place}")
TISSUES = (
    "grey matter makes up {grey} % of its tissue and white matter {white} %.",
    "of the tissue, {grey} % is grey and {white} % is white matter.",
    "its tissue is {grey} % grey matter; the rest, {white} %, is white matter.",
)
SIZES = ("Tissue fills {area} % of the picture.", "{area} % of the picture shows brain tissue.")


class Volumes(NamedTuple):
    """The template and its tissue maps on one grid of 1 mm; ``origin`` is the position of the first voxel in mm."""

    t1: Float[np.ndarray, "x y z"]
    grey: Float[np.ndarray, "x y z"]
    white: Float[np.ndarray, "x y z"]
    origin: Float[np.ndarray, " 3"]


def load_volumes() -> Volumes:
    """Read the template and its tissue maps from the installed nilearn package."""
    from nilearn.datasets import load_mni152_gm_template, load_mni152_template, load_mni152_wm_template

    images = [load(resolution=1) for load in (load_mni152_template, load_mni152_gm_template, load_mni152_wm_template)]
    return Volumes(*(image.get_fdata() for image in images), origin=images[0].affine[:3, 3])


def cut(volume: np.ndarray, axis: int, voxel: float) -> np.ndarray:
    """Cut one slice, mixed linearly from its two neighbours; the last axis runs upwards in the picture."""
    below, share = int(voxel), voxel % 1
    slices = np.moveaxis(volume, axis, 0)
    return np.rot90(slices[below] * (1 - share) + slices[below + 1] * share)


def where(plane: Plane, position_mm: float) -> str:
    """Say where a slice of a plane lies, to the millimetre."""
    distance = round(position_mm)
    said = plane.zero if distance == 0 else f"{abs(distance)} mm {plane.positive if distance > 0 else plane.negative}"
    return said.format(ac="anterior commissure")


def describe(plane: Plane, position_mm: float, shares: tuple[float, float], rng: np.random.Generator) -> str:
    """Say in words of varied choice what is true of a slice: its plane, its position, its tissue."""
    grey, area = shares
    opening, tissue, size = (rng.choice(options) for options in (OPENINGS, TISSUES, SIZES))
    first = opening.format(plane=plane.name.capitalize(), lower=plane.name, place=where(plane, position_mm))
    percent = round(100 * grey)
    return f"{first}; {tissue.format(grey=percent, white=100 - percent)} {size.format(area=round(100 * area))}"


def positions(plane: Plane) -> Iterator[tuple[int, float]]:
    """Give slab number and position in mm of every slice of a plane."""
    width = (plane.last_mm - plane.first_mm) / SLABS
    for slab in range(SLABS):
        for offset in np.linspace((1 - KEPT) / 2, (1 + KEPT) / 2, SLICES):
            yield slab, plane.first_mm + (slab + offset) * width


def prepare(out: Path) -> Path:
    """Write the slices as PNG and their manifest, whose ``patient`` is the slab; return the manifest's path."""
    volumes, rng, rows = load_volumes(), np.random.default_rng(0), []
    (out / "images").mkdir(parents=True, exist_ok=True)
    for plane in PLANES:
        split = rng.permutation(["train"] * 14 + ["validate"] * 2 + ["test"] * 4)
        for number, (slab, position_mm) in enumerate(positions(plane)):
            voxel = position_mm - volumes.origin[plane.axis]
            picture, grey, white = (cut(volume, plane.axis, voxel) for volume in volumes[:3])
            share, area = float(grey.sum() / (grey + white).sum()), float((grey + white > 0.5).mean())
            name = f"images/{plane.name}_{number:03d}.png"
            Image.fromarray((255 * np.clip(picture, 0, 1)).astype(np.uint8)).save(out / name)
            row = {"image": name, "text": describe(plane, position_mm, (share, area), rng)}
            row |= {"patient": f"{plane.name}-slab-{slab:02d}", "split": str(split[slab])}
            row |= {other.name: int(other is plane) for other in PLANES}
            rows.append(row | {"mostly_grey": int(share > GREY), "large": int(area > LARGE)})
    with (out / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)
    return out / "manifest.csv"


def main(*, out: Path = Path("runs/brain"), prepare_only: bool = False) -> None:
    """Cut the MNI152 template into 600 slices with true sentences and run the four commands on them.

    Args:
        out: Folder for the slices, the bank, the adaptor and the study.
        prepare_only: Write slices and manifest, and stop.
    """
    print(NOTE)
    manifest = prepare(out)
    print(f"600 slices: {manifest}")
    bank, adaptor, study = (str(out / name) for name in ("bank", "adaptor", "study"))
    encoders = ["--image-encoder", "bundled:dinov2-small", "--text-encoder", "bundled:minilm-l6"]
    commands = (
        ["check", str(manifest)],
        ["embed", str(manifest), *encoders, "--out", bank],
        ["pretrain", bank, "--method", "adaptor", "--out", adaptor],
        ["study", bank, "--adaptor", adaptor, "--fractions", "0.01", "0.1", "1", "--seeds", "5", "--out", study],
    )
    for command in () if prepare_only else commands:
        print("adaptmed", *command, flush=True)
        subprocess.run([sys.executable, "-m", "adaptmed", *command], check=True)
    print(NOTE)


if __name__ == "__main__":
    run(main)
