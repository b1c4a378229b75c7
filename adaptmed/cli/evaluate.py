"""``adaptmed evaluate``: a finished run, judged again on the test split of any bank of the same encoders."""

from pathlib import Path
from typing import Any, Literal

from adaptmed.errors import InputError, sentence


def evaluate(
    run: Path,
    bank: Path,
    /,
    *,
    task: Literal["retrieval"] | None = None,
    out: Path | None = None,
    top_k: int | None = None,
    most: int | None = None,
    seed: int | None = None,
    device: str = "auto",
    precision: Literal["fp32", "bf16"] = "fp32",
    allow_overlap: bool = False,
) -> None:
    """Judge a run on the test split of a bank: answers, labels, classes or masks of `adaptmed finetune`, or retrieval.

    The bank may be the one the run was trained on, or one of another dataset, made by the same encoders with the same
    layout. Of a run with --lora it is one that `adaptmed embed m.csv --adaptor RUN` wrote. Test patients that the run
    has seen are refused. Answers are those of the run's training: others count as wrong, and are counted.

    With `--task retrieval` a run of `adaptmed pretrain` looks for the text of every image and the images of every text:
    by embedding, and with the first --top-k candidates read as pairs and sorted by the matching head.

    Args:
        run: Run folder of `adaptmed finetune`; with --task retrieval that of `adaptmed pretrain` or of a calibration.
        bank: Bank whose test split is judged.
        task: retrieval, of a pre-trained run; a tuned run knows its own task.
        out: File to write; by default evaluation-NAME.json, or retrieval-NAME.json, in the run folder, after the bank.
        top_k: For retrieval: candidates of each query that are sorted again, 16 by default.
        most: For retrieval: pairs that are judged; of more, so many are drawn, 2000 by default.
        seed: For retrieval: seed of that draw, 0 by default.
        device: auto, cpu or cuda.
        precision: bf16 computes in mixed precision, fp32 exactly.
        allow_overlap: Judge although test patients were seen; the result says so.
    """
    from rich.console import Console

    from adaptmed.bank import Bank
    from adaptmed.cli.show import print_retrieval, print_scores
    from adaptmed.files import write_json
    from adaptmed.tasks.evaluate import evaluate as judge
    from adaptmed.tasks.evaluate import target_of
    from adaptmed.tasks.task import How

    asked = {"top_k": top_k, "most": most, "seed": seed}
    given = {name: value for name, value in asked.items() if value is not None}
    if task is None and given:
        name, value = next(iter(given.items()))
        fix = "Add --task retrieval, or leave the option out."
        expected = f"--task retrieval whenever --{name.replace('_', '-')} is given"
        raise InputError(sentence(name, expected=expected, got=value, fix=fix))
    opened = Bank.open(bank)
    if task == "retrieval":
        from adaptmed.tasks.retrieval.judging import judge_retrieval

        options: dict[str, Any] = {**given, "device": device, "precision": precision, "allow_overlap": allow_overlap}
        result = judge_retrieval(run, opened, progress=True, **options)
        target = out or run / f"retrieval-{opened.folder.resolve().name}.json"
        write_json(target, result)
        print_retrieval(result)
    else:
        target = out or target_of(run, opened)
        how = How(device=device, precision=precision)
        result = judge(run, opened, out=out, how=how, allow_overlap=allow_overlap)
        print_scores(result["task"], result)
    Console(soft_wrap=True, highlight=False, markup=False).print(f"Written: {target}")
