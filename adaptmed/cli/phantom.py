"""``adaptmed phantom``: write a made-up dataset to try everything on."""

from pathlib import Path


def phantom(out: Path, *, studies: int = 2000, seed: int = 0, image_size_px: int = 256) -> None:
    """Write a phantom dataset: drawn chest-radiograph-like pictures with reports, masks and questions.

    Nothing in it comes from a person, and each picture bears the word PHANTOM. Five findings (effusion, pneumothorax,
    consolidation, nodule, cardiomegaly) are stated and denied in varied words; a patient has one to three studies and
    stands in one split (70 % train, 10 % validate, 20 % test). The same settings give the same files. A run that was
    stopped continues when it is started again.

    Args:
        out: Folder to write to: manifest.csv, questions.csv, findings.jsonl, images and masks.
        studies: How many pictures.
        seed: Another seed gives other patients.
        image_size_px: Height and width of the pictures, 64 to 2048.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from adaptmed.data.phantom import write_phantom

    console = Console()
    columns = (TextColumn("drawing"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=studies)
        manifest = write_phantom(
            out,
            studies=studies,
            seed=seed,
            image_size_px=image_size_px,
            progress=lambda done, _: bar.update(task, completed=done),
        )
        bar.update(task, completed=studies)
    said = f"{studies} made-up studies, no medical data: {manifest}\nNext: adaptmed check {manifest}"
    console.print(said, soft_wrap=True, highlight=False, markup=False)
