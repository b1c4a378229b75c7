"""Miniature of a Decathlon task: ten drawn volumes with two labels, and the traps of the published archives."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np

from adaptmed.data.readers.decathlon import FACTS, IMAGES, LABELS

_SHAPE = (12, 16, 12)
_COUNT = 10


def write(folder: Path) -> None:
    """Write volumes, labels and ``dataset.json``.

    Traps: paths that begin with ``./``, labels whose keys are text, files that macOS leaves behind, a volume that is
    stored as whole numbers, and test volumes without labels that are not there.
    """
    for part in (IMAGES, LABELS):
        (folder / part).mkdir(parents=True, exist_ok=True)
    names = [f"hippocampus_{number:03d}.nii.gz" for number in range(_COUNT)]
    for number, name in enumerate(names):
        values, labels = _volume(number)
        kind = np.uint8 if number == 0 else np.float32
        nib.save(nib.Nifti1Image(values.astype(kind), np.eye(4)), folder / IMAGES / name)
        nib.save(nib.Nifti1Image(labels, np.eye(4)), folder / LABELS / name)
        (folder / IMAGES / f"._{name}").write_bytes(b"\0\5\26\7")
    facts = {
        "name": "Hippocampus",
        "licence": "CC-BY-SA 4.0",
        "modality": {"0": "MRI"},
        "labels": {"0": "background", "1": "Anterior", "2": "Posterior"},
        "numTraining": _COUNT,
        "training": [{"image": f"./{IMAGES}/{name}", "label": f"./{LABELS}/{name}"} for name in names],
        "test": ["./imagesTs/hippocampus_900.nii.gz"],
    }
    (folder / FACTS).write_text(json.dumps(facts, indent=1))


def _volume(seed: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    place = np.asarray(np.mgrid[tuple(slice(-1, 1, size * 1j) for size in _SHAPE)])
    centre, radius = draw.uniform(-0.15, 0.15, 3), draw.uniform(0.45, 0.6)
    inside = ((place - centre[:, None, None, None]) ** 2).sum(0) < radius**2
    labels = np.where(inside, np.where(place[1] > centre[1], 1, 2), 0).astype(np.uint8)
    values = 60 + 50 * (labels == 1) + 90 * (labels == 2) + draw.normal(0, 5, _SHAPE)
    return values.clip(0, 255), labels
