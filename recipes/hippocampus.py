"""Hippocampus of the Medical Segmentation Decathlon: anterior and posterior part in 260 small MRI volumes.

Licence   CC BY-SA 4.0. Antonelli et al.: The Medical Segmentation Decathlon, Nature Communications 2022.
Data      medicaldecathlon.com: Task04_Hippocampus.tar, unpacked (27 MB).
Command   python recipes/hippocampus.py --folder ../shared/data/Task04_Hippocampus --fractions 0.1 1
          python recipes/hippocampus.py --miniature
Time      One thread: eight minutes to embed 9,270 slices, then six to ten for every cell of a trained arm.

Published: nnU-Net reaches a mean Dice of about 0.89 with all labelled volumes and 3-D convolutions at full resolution.
Here 64 % of them train, slices are read, and the encoder is frozen: what stands beside it is the U-Net from scratch
with the same decoder and the same steps.
"""

import argparse
import tempfile
from pathlib import Path

from adaptmed import Manifest, load_image_encoder
from adaptmed.cli.show import print_table
from adaptmed.data.miniatures import write_miniature
from adaptmed.embedding.embed import embed
from adaptmed.embedding.options import EmbedOptions
from adaptmed.runs.precision import usual_precision
from adaptmed.study.segmentation.settings import SegmentationStudy
from adaptmed.study.segmentation.study import length_of, study_segmentation
from adaptmed.tasks.segmentation.settings import SegmentationSettings

NAMES = {1: "anterior", 2: "posterior"}


def options() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("../shared/data/Task04_Hippocampus"))
    parser.add_argument("--out", type=Path, default=Path("runs/hippocampus"))
    parser.add_argument("--plane", choices=["axial", "coronal", "sagittal", "three"], default="axial")
    parser.add_argument("--dtype", choices=["float16", "int8", "int4"], default="int8")
    parser.add_argument("--image-size-px", type=int, default=112)
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.01, 0.1, 1.0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300, help="at most; training ends when the validated Dice does")
    parser.add_argument("--channels", type=int, default=8, help="of decoder and U-Net at full size")
    parser.add_argument("--miniature", action="store_true", help="drawn volumes in the true layout, in seconds")
    return parser.parse_args()


def small(asked: argparse.Namespace, place: Path) -> argparse.Namespace:
    """The options of a try on the miniature."""
    asked.folder, asked.out = write_miniature("decathlon", place / "Task04_Hippocampus"), place / "out"
    asked.image_size_px, asked.fractions, asked.seeds, asked.steps = 28, [1.0], 1, 2
    return asked


def run(asked: argparse.Namespace) -> dict:
    """The whole way, from the folder to the study's report."""
    manifest = Manifest.from_dataset("decathlon", asked.folder)
    print(*manifest.notes, sep="\n")
    encoder = load_image_encoder("bundled:dinov2-small", image_size_px=asked.image_size_px)
    bank = embed(
        manifest, encoder, None, asked.out / "bank", options=EmbedOptions(plane=asked.plane, dtype=asked.dtype)
    )
    training = SegmentationSettings(
        steps=asked.steps, validations=6, patience=3, channels=asked.channels, precision=usual_precision("auto")
    )
    settings = SegmentationStudy(
        fractions=tuple(asked.fractions), seeds=asked.seeds, training=training, labels=NAMES, replicates=1000
    )
    print(length_of(bank, settings))
    return study_segmentation([bank], [], asked.out / "study", settings=settings)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        asked = options()
        asked = small(asked, Path(place)) if asked.miniature or not asked.folder.is_dir() else asked
        print_table(run(asked))
        print("Published, all labels: nnU-Net, mean Dice about 0.89.")
        print(f"Report: {asked.out / 'study' / 'report.html'}")
