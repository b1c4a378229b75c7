"""``adaptmed demo``: the whole way on made-up pictures, with real pretrained encoders that need no network."""

import shutil
from pathlib import Path


def demo(
    *, out: Path = Path("runs/demo"), studies: int = 2000, epochs: int | None = None, seeds: int = 3, seed: int = 0
) -> None:
    """Show the whole way: made-up pictures and reports, frozen encoders, pre-training, a low-data study, a report.

    Nothing is downloaded: the weights of DINOv2 ViT-S/14 and MiniLM-L6 come with the extra `demo`. Takes about ten
    minutes on two cores. The pictures are drawn, no medical data; the numbers say that the path works, not what it is
    worth on patients. Run it again to go on where it stopped.

    Args:
        out: Folder to write: `results.json`, `report.html`, `adaptor/`, and everything on the way to them.
        studies: How many pictures to draw; fewer are faster and say less.
        epochs: Passes of pre-training, instead of the method's.
        seeds: Seeds of the study.
        seed: Of the pictures and of pre-training.
    """
    from rich.console import Console

    from adaptmed.cli.embed import embed
    from adaptmed.cli.options import EncoderOptions
    from adaptmed.cli.phantom import phantom
    from adaptmed.cli.pretrain import pretrain
    from adaptmed.cli.study import study

    console = Console()
    console.rule("1 of 4: draw a phantom (no medical data)")
    phantom(out / "phantom", studies=studies, seed=seed)
    console.rule("2 of 4: embed with frozen encoders")
    bank, run, judged = out / "bank", out / "run", out / "study"
    manifest = out / "phantom" / "manifest.csv"
    encoders = EncoderOptions(image_encoder="bundled:dinov2-small", text_encoder="bundled:minilm-l6")
    embed(manifest, out=bank, encoders=encoders)
    console.rule("3 of 4: pre-train the fusion")
    pretrain(bank, out=run, epochs=epochs, seed=seed)
    console.rule("4 of 4: study 1 %, 10 % and 100 % of the labels")
    study(bank, adaptor=[run], out=judged, seeds=seeds)
    _present(run / "adaptor", out / "adaptor")
    _present(run / "patients_seen.json", out / "patients_seen.json")
    for name in ("results.json", "report.html"):
        _present(judged / name, out / name)
    console.print(f"Open [bold]{(out / 'report.html').resolve()}[/] in a browser.", soft_wrap=True)


def _present(source: Path, target: Path) -> None:
    """Copy beside ``target`` and rename into place."""
    fresh = target.with_name(f".{target.name}.part")
    shutil.rmtree(fresh, ignore_errors=True)
    if source.is_dir():
        shutil.copytree(source, fresh)
        shutil.rmtree(target, ignore_errors=True)
    else:
        shutil.copyfile(source, fresh)
    fresh.replace(target)
