"""``adaptmed study``: what an adaptor, or LoRA tuned on labels, is worth at 1 %, 10 % and 100 % of the labels."""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from adaptmed.cli.options import AnswerStudyOptions, MaskStudyOptions, TunedOptions
from adaptmed.cli.show import print_cautions, print_table

if TYPE_CHECKING:
    from adaptmed.bank import Bank

_TUNED, _MASKS, _ANSWERS = TunedOptions(), MaskStudyOptions(), AnswerStudyOptions()


def study(
    *banks: Path,
    out: Path,
    adaptor: list[Path] | None = None,
    task: Literal["classification", "segmentation", "answering"] | None = None,
    lora: TunedOptions = _TUNED,
    masks: MaskStudyOptions = _MASKS,
    answers: AnswerStudyOptions = _ANSWERS,
    config: Path | None = None,
    fractions: Annotated[tuple[float, ...], Parameter(consume_multiple=True, show_default=False)] = (),
    seeds: int | None = None,
    arms: Annotated[tuple[str, ...], Parameter(consume_multiple=True, show_default=False)] = (),
    prompts: Path | None = None,
    replicates: int | None = None,
    precision: Literal["fp32", "bf16"] | None = None,
    examples: bool = True,
    allow_overlap: bool | None = None,
) -> None:
    """Compare a pre-trained adaptor, or LoRA tuned on the labels, with frozen baselines at several label fractions.

    Trains on the `train` split, judges on `test`. Fractions are of patients: nested, stratified and the same for every
    arm; nothing is selected on labels outside a fraction. Writes `results.json` and `report.html`. Run the same command
    again to go on where it stopped. An adaptor of images alone has no zero-shot, no retrieval and no text-informed
    probe; the report says so.

    Without an adaptor the image encoder alone is studied: the frozen probe, and LoRA inside the encoder that is trained
    on the labels of the fraction, from images that are read again and changed at random. How many steps every cell
    takes, and how many images go through the encoder, is said before the first one; there are 120 to 1000 steps.
    Beside an adaptor this arm comes on request alone, because all other arms read the bank and take no encoder's time.

    With `--task segmentation` the labels are masks, read again from the table's files: every arm trains the same
    decoder until the Dice on the same share of `validate` stops rising, for at most the same number of steps, and is
    judged by Dice in the geometry of the images.

    With `--task answering` every arm answers the questions of `test` after training on a fraction of the patients, the
    blind ones without the image; --adaptor is repeated once per pre-trained run on the one bank, and each is an arm.

    Args:
        banks: Banks that `adaptmed embed` wrote, with labels; several draw the grid of encoder pairs.
        out: Folder to write.
        adaptor: Run folder of `adaptmed pretrain` (or a saved adaptor); repeat it once per bank, in the same order.
            Without one the arms are frozen and lora-tuned; of segmentation empty, unet and frozen. For answering: any
            number of runs on one bank.
        task: What is studied: classification (the default), segmentation or answering.
        lora: Tuned banks with their runs.
        masks: How the arms of a study of masks are trained.
        answers: How the arms of a study of answers are trained.
        config: Take what is left out from the config.json of another study, or a copy of it.
        fractions: Shares of the labelled training patients, above 0 and at most 1; 0.01 0.1 1 by default.
        seeds: How many seeds; each chooses another fraction. 5 by default, for segmentation 3.
        arms: Contenders: frozen, adaptor-untrained, "text-informed probe", adaptor, adaptor-trained; with a tuned bank
            also lora (the frozen probe on it) and adaptor+lora; on request adaptor-head (the paper's two-layer head),
            lora-tuned (fresh LoRA inside a copy of the image encoder is trained in every cell, from the images) and
            full (the whole copy is: slow). All but the last three by default; without an adaptor frozen and
            lora-tuned, on request full. For segmentation: empty (predicts nothing), unet (from scratch), frozen,
            adaptor, adaptor-trained; with a tuned bank adaptor+lora; on request adaptor-untrained. For answering:
            majority, lookup (the very same question), question, frozen; with runs "no pre-training", the method of each
            (adaptor, m3ae, umd), and with the fusion co the same with +gm-coord.
        prompts: JSON file with zero-shot prompts per label, instead of generic ones.
        replicates: Bootstrap replicates behind every interval; 1000 by default.
        precision: Of whatever is trained, as of `finetune`; by default bf16 where the device computes in it.
        examples: Show pictures and report texts in the report; --no-examples makes a report that may be shared.
        allow_overlap: Judge although test patients were seen in pre-training; the report says so.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.text import Text

    from adaptmed.bank import Bank
    from adaptmed.runs.settings import read_settings, task_of

    _, held = read_settings(config, "study")
    asked = task_of(task, held, "classification")
    refuse_foreign_to_study(asked, masks, answers, prompts)
    tuned = lora.pairs()
    given = {"fractions": tuple(fractions) or None, "arms": tuple(arms) or None, "replicates": replicates}
    given |= {"allow_overlap": allow_overlap, "seeds": seeds}
    shared: dict[str, Any] = held | {name: value for name, value in given.items() if value is not None}
    makers: dict[str, Callable[[], Callable[..., dict[str, Any]]]] = {
        "classification": lambda: _classification(shared, prompts, precision, out),
        "segmentation": lambda: _segmentation(shared, masks, precision, out),
        "answering": lambda: _answering(shared, answers, precision, out),
    }
    run = makers[asked]()
    console = Console()
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=console) as bar:
        shown = bar.add_task("reading", total=None)

        def show(what: str, done: int, total: int) -> None:
            bar.update(shown, description=what, completed=done, total=total)

        opened = [Bank.open(bank) for bank in banks]
        beside = [(Bank.open(bank), trained) for bank, trained in tuned]
        results = run(opened, adaptor or [], out, tuned=beside, examples=examples, progress=show)
    print_table(results)
    console.print(Text.assemble("Report: ", (str(out / "report.html"), "bold")), soft_wrap=True)


def _classification(
    shared: dict[str, Any], prompts: Path | None, precision: str | None, out: Path
) -> Callable[..., dict[str, Any]]:
    from adaptmed.heads.prompts import load_prompts
    from adaptmed.runs.precision import usual_precision
    from adaptmed.runs.settings import build_settings
    from adaptmed.study.classification.settings import StudySettings
    from adaptmed.study.classification.study import study as run

    given: dict[str, Any] = {"prompts": load_prompts(prompts)} if prompts else {}
    given |= {"precision": precision} if precision else {}
    usual = {"precision": usual_precision("auto", out)}
    settings = build_settings(StudySettings, "config", usual | shared | given)
    return partial(run, settings=settings, announce=print_cautions)


def _segmentation(
    shared: dict[str, Any], masks: MaskStudyOptions, precision: str | None, out: Path
) -> Callable[..., dict[str, Any]]:
    from adaptmed.data.mask_labels import parse_labels
    from adaptmed.runs.precision import usual_precision
    from adaptmed.runs.settings import build_settings
    from adaptmed.study.segmentation.settings import SegmentationStudy
    from adaptmed.study.segmentation.study import length_of, study_segmentation

    training: dict[str, Any] = {"precision": usual_precision(masks.device or "auto", out)}
    training |= shared.get("training", {})
    chosen: dict[str, Any] = {"precision": precision} | asdict(masks)
    labels, rates, device = (chosen.pop(name) for name in ("mask_labels", "learning_rates", "device"))
    training |= {name: value for name, value in chosen.items() if value is not None}
    given: dict[str, Any] = {"learning_rates": rates, "labels": parse_labels(labels) if labels else None}
    given = {name: value for name, value in given.items() if value is not None} | {"training": training}
    settings = build_settings(SegmentationStudy, "config", shared | given)

    def run(banks: "list[Bank]", *args: Any, **shown: Any) -> dict[str, Any]:
        print_cautions(length_of(bank, settings) for bank in banks)
        return study_segmentation(banks, *args, settings=settings, device=device or "auto", **shown)

    return run


def _answering(
    shared: dict[str, Any], answers: AnswerStudyOptions, precision: str | None, out: Path
) -> Callable[..., dict[str, Any]]:
    from adaptmed.errors import InputError, sentence
    from adaptmed.runs.precision import usual_precision
    from adaptmed.runs.settings import build_settings
    from adaptmed.study.answering.settings import AnsweringStudy
    from adaptmed.study.answering.study import study_answering
    from adaptmed.tasks.pairs.settings import ANSWERING, EPOCHS

    held = dict(shared.get("training", {}))
    training = {"precision": usual_precision("auto", out), "epochs": EPOCHS, **held.get("settings", {})}
    asked = {"epochs": answers.epochs, "precision": precision}
    training |= {name: value for name, value in asked.items() if value is not None}
    chosen = held | {"task": ANSWERING, "settings": training}
    chosen |= {} if answers.answers_by_kind is None else {"kinds": answers.answers_by_kind}
    settings = build_settings(AnsweringStudy, "config", shared | {"training": chosen})

    def run(banks: "list[Bank]", runs: list[Path], out: Path, *, tuned: list[Any], **shown: Any) -> dict[str, Any]:
        if len(banks) != 1 or tuned:
            got = f"{len(banks)} banks" if len(banks) != 1 else "a tuned bank"
            fix = "Study each bank into an --out folder of its own."
            raise InputError(sentence("banks", expected="one bank for a study of answers", got=got, fix=fix))
        return study_answering(banks[0], runs, out, settings=settings, **shown)

    return run


def refuse_foreign_to_study(
    task: str, masks: MaskStudyOptions, answers: AnswerStudyOptions, prompts: Path | None
) -> None:
    """Refuse what another task of ``adaptmed study`` reads."""
    from adaptmed.runs.settings import refuse_foreign

    refuse_foreign(task, "segmentation", asdict(masks))
    refuse_foreign(task, "answering", asdict(answers))
    refuse_foreign(task, "classification", {"prompts": prompts})
