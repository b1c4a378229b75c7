"""``adaptmed predict``: masks for new images, in their own geometry."""

from pathlib import Path
from typing import Literal

from adaptmed.errors import InputError, sentence

_TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".pq")


def predict(
    run: Path,
    *inputs: Path,
    out: Path,
    split: Literal["train", "validate", "test"] | None = None,
    device: str = "auto",
) -> None:
    """Write the masks of new images with a run of `adaptmed finetune --task segmentation`.

    A picture (PNG, JPEG, DICOM) gets a PNG of its own size. A volume (NIfTI, or the folder of a DICOM series) gets
    NIfTI with the affine of its source, so that it lies on it in every viewer. Values are those of the masks that were
    learnt; labels.json names them. Images that cannot be read are listed in rejects.jsonl. Run the same command again
    to go on where it stopped.

    Args:
        run: Run folder of `adaptmed finetune --task segmentation`.
        inputs: Images, folders of DICOM series, or one table with a column `image`.
        out: Folder to write; a mask gets the name of its image, as the table or the command line gives it.
        split: Of a table only the rows of this split.
        device: auto, cpu or cuda.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    from adaptmed.tasks.segmentation.predict import predict as write_masks

    images = _images(inputs, split)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    with Progress(BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("", total=len(images))
        rejects = write_masks(
            run, images, out, device=device, progress=lambda done, _: bar.update(task, completed=done)
        )
    console.print(f"{len(images) - len(rejects)} masks in {out}, {len(rejects)} images rejected.")
    for reject in rejects[:10]:
        console.print(f"Rejected: {reject['image']}: {reject['reason']}")


def _images(inputs: tuple[Path, ...], split: str | None) -> dict[str, Path]:
    """Name every image: as a table does, or by what its file or folder is called."""
    from adaptmed.data.manifest import Manifest

    if len(inputs) == 1 and inputs[0].suffix.lower() in _TABLES:
        table = Manifest.read(inputs[0])
        frame = table.frame if split is None else table.frame[table.frame["split"] == split]
        return {name: table.root / name for name in dict.fromkeys(frame["image"]) if name}
    if not inputs or split is not None:
        expected = "images, or one table" if split is None else "one table beside --split"
        fix = "Pass for example chest.png, or manifest.csv."
        raise InputError(sentence("inputs", expected=expected, got=f"{len(inputs)} paths", fix=fix))
    names = [(path.resolve() if path.name in ("", "..") else path).name for path in inputs]
    if len(set(names)) < len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        fix = "Predict them into two folders, or list them in a table."
        raise InputError(sentence("inputs", expected="images of distinct names", got=f"{repeated} twice", fix=fix))
    return dict(zip(names, inputs, strict=True))
