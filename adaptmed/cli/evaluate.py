"""``adaptmed evaluate``: a finished run, judged again on the test split of any bank of the same encoders."""

from pathlib import Path
from typing import Literal


def evaluate(
    run: Path,
    bank: Path,
    /,
    *,
    out: Path | None = None,
    device: str = "auto",
    precision: Literal["fp32", "bf16"] = "fp32",
    allow_overlap: bool = False,
) -> None:
    """Judge a run of `adaptmed finetune` on the test split of a bank: answers, labels or classes.

    The bank may be the one the run was trained on, or one of another dataset, made by the same encoders with the same
    layout. Of a run with --lora it is one that `adaptmed embed m.csv --adaptor RUN` wrote. Test patients that the run
    has seen are refused. Answers are those of the run's training: others count as wrong, and are counted.

    Args:
        run: Run folder of `adaptmed finetune` for answering, image-text-classification or classification.
        bank: Bank whose test split is judged.
        out: File to write; evaluation-<name of the bank>.json in the run folder by default.
        device: auto, cpu or cuda.
        precision: bf16 computes in mixed precision, fp32 exactly.
        allow_overlap: Judge although test patients were seen; the result says so.
    """
    from rich.console import Console

    from adaptmed.bank import Bank
    from adaptmed.cli.finetune_pairs import print_pairs
    from adaptmed.tasks.pairs.evaluate import evaluate as judge
    from adaptmed.tasks.pairs.evaluate import target_of

    opened = Bank.open(bank)
    result = judge(run, opened, out=out, device=device, precision=precision, allow_overlap=allow_overlap)
    print_pairs(result)
    Console(soft_wrap=True, highlight=False, markup=False).print(f"Written: {out or target_of(run, opened)}")
