"""MedPix 2.0: pre-training on captions of CT and MR slices, judged on modality, plane or body part of other cases.

Licence   The archive's pictures are free for research and teaching; they are not passed on here. Siragusa et al.:
          MedPix 2.0, Data Science and Engineering 2025.
Data      github.com/CHILab1/MedPix-2.0: the folder `MedPix-2-0/` (`images/`, `splitted_dataset/`, `Case_topic.json`).
Command   python recipes/medpix2.py --folder MedPix-2-0 --label body_part --without ../shared/data/vqa_rad
          python recipes/medpix2.py --miniature
Time      Two cores: minutes to embed 2,000 pictures and to pre-train; the study has not been timed.

Published: the authors' CLIP tells modality and location of scans; its classes were not compared with these, so that no
number stands beside them. 1,653 training pictures are few: with the preset's own rate the validated contrast is
lowest at the second epoch, hence the dropout and the small rate below, chosen on `validate`.
VQA-RAD was made from the same archive: `--without` leaves its cases out, or it cannot judge what is trained here.
"""

import argparse
import tempfile
from pathlib import Path

import pandas as pd

from adaptmed import Manifest, load_image_encoder, load_text_encoder, methods
from adaptmed.cli.show import print_table
from adaptmed.data.miniatures import write_miniature
from adaptmed.data.readers.medpix2 import caption_of, plane_of
from adaptmed.embedding.embed import embed
from adaptmed.pretraining.pretrain import pretrain
from adaptmed.runs.precision import usual_precision
from adaptmed.study.classification.settings import StudySettings
from adaptmed.study.classification.study import study

LABELS = ("body_part", "plane", "modality")
CHANGES = {
    "fusion": {"dropout": 0.2},
    "contrastive": {"token_dropout": 0.6},
    "schedule": {"learning_rate": 3e-4, "epochs": 10, "least_steps": 0, "patience": 3},
}


def options() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("../shared/data/medpix2"))
    parser.add_argument("--out", type=Path, default=Path("runs/medpix2"))
    parser.add_argument("--label", choices=LABELS, default="body_part")
    parser.add_argument("--without", type=Path, help="folder of VQA-RAD, whose cases are left out")
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.01, 0.1, 1.0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--image-size-px", type=int, default=224)
    parser.add_argument("--miniature", action="store_true", help="a drawn miniature in the true layout, in seconds")
    return parser.parse_args()


def small(asked: argparse.Namespace, place: Path) -> argparse.Namespace:
    """The options of a try on the miniature."""
    asked.folder, asked.out = write_miniature("medpix2", place / "medpix2"), place / "out"
    asked.fractions, asked.seeds, asked.image_size_px = [1.0], 1, 56
    CHANGES["fusion"] |= {"width": 32, "layers": 1}
    CHANGES["schedule"] |= {"epochs": 1}
    return asked


def manifest_of(asked: argparse.Namespace) -> Manifest:
    """The authors' layout, or one table beside the pictures with the same facts."""
    table = asked.folder / "manifest.csv"
    if not table.is_file():
        return Manifest.from_dataset("medpix2", asked.folder, class_column=asked.label, without=asked.without)
    rows = pd.read_csv(table, dtype=str).fillna("")
    if asked.without is not None:
        rows = rows[(rows["picture_in_vqa_rad"] == "0") & (rows["case_in_vqa_rad"] == "0")]
    rows["image"] = [str((asked.folder / name).resolve()) for name in rows["image"]]
    rows["text"], rows["plane"] = rows["text"].map(caption_of), rows["plane"].map(plane_of)
    asked.out.mkdir(parents=True, exist_ok=True)
    rows[["image", "text", "patient", "split", *LABELS]].to_csv(asked.out / "medpix2.csv", index=False)
    return Manifest.read(asked.out / "medpix2.csv", class_column=asked.label)


def run(asked: argparse.Namespace) -> dict:
    """The whole way, from the folder to the study's report."""
    manifest = manifest_of(asked)
    print(*manifest.notes, sep="\n")
    image = load_image_encoder("bundled:dinov2-small", image_size_px=asked.image_size_px)
    text = load_text_encoder("bundled:minilm-l6")
    bank = embed(manifest, image, text, asked.out / f"bank-{asked.label}")
    pretrain(bank, methods.changed(methods.adaptor(), CHANGES), asked.out / "adaptor")
    settings = StudySettings(fractions=tuple(asked.fractions), seeds=asked.seeds, precision=usual_precision("auto"))
    return study([bank], [asked.out / "adaptor"], asked.out / f"study-{asked.label}", settings=settings)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        asked = options()
        asked = small(asked, Path(place)) if asked.miniature or not asked.folder.is_dir() else asked
        print_table(run(asked))
        print(f"Report: {asked.out / f'study-{asked.label}' / 'report.html'}")
