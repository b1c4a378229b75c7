"""The part of ``adaptmed finetune`` that learns from images with their texts: answers, labels, classes."""

from pathlib import Path
from typing import Any

ARMS = {
    "tuned": "tuned",
    "shuffled_image": "with another patient's image",
    "frozen": "frozen features",
    "question_only": "question alone",
    "text_only": "text alone",
    "majority": "most frequent answer",
}


def finetune_pairs(
    run: Path,
    bank: Path,
    out: Path,
    asked: dict[str, Any],
    shared: dict[str, Any],
    coordination: dict[str, Any] | None,
    *,
    device: str,
) -> None:
    """Tune for pairs, and print how good the answers or classes are.

    Args:
        run: Run folder of ``adaptmed pretrain``, or a saved adaptor.
        bank: Bank of pairs.
        out: Run folder to write.
        asked: Settings of training; ``None`` leaves the default.
        shared: What is tuned, and on what; likewise.
        coordination: How gradients wait for each other, likewise; ``None`` leaves them alone.
        device: Lightning's accelerator.
    """
    from rich.console import Console

    from adaptmed.bank import Bank
    from adaptmed.lora import LoRA
    from adaptmed.runs.processes import join
    from adaptmed.tasks.pairs.finetune import finetune_pairs as tune
    from adaptmed.tasks.pairs.settings import EPOCHS, Coordination, PairChoices
    from adaptmed.training.settings import FinetuneSettings

    for side in ("image_lora", "text_lora"):
        shared[side] = None if shared[side] is None else LoRA.parse(shared[side])
    choices = PairChoices(
        settings=FinetuneSettings(**{"epochs": EPOCHS, **_said(asked)}),
        coordination=None if coordination is None else Coordination(**_said(coordination)),
        **_said(shared),
    )
    result = tune(Bank.open(bank), run, out, choices, device=device, progress=True)
    if not join(device).first:
        return
    trained = f"{result['trainable_parameters']:,} parameters on {result['train_pairs']} pairs"
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(f"Trained {trained} of {result['train_patients']} patients.")
    print_pairs(result)
    console.print(f"Tuned adaptor and head: {out}\nNext: adaptmed evaluate {out} another-bank")


def print_pairs(result: dict[str, Any]) -> None:
    """Print what must be said about a result, and its scores beside those of the baselines.

    Args:
        result: Of a fine-tuning on pairs, or of an evaluation.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from adaptmed.cli.show import estimate

    console = Console(soft_wrap=True, highlight=False, markup=False)
    for caution in _cautions(result):
        console.print(caution)
    test = result["test"]
    if test is None:
        return
    arms = [name for name in ARMS if name in test and "reason" not in test[name]]
    noun = "images" if result["task"] == "classification" else "pairs"
    title = f"{_measure(result)} on {test['pairs']} test {noun} of {test['patients']} patients"
    table = Table("", *(ARMS[name] for name in arms), title=Text(title, style="table.title"))
    for name in _lines(test["tuned"]):
        table.add_row(Text(name), *(estimate(_lines(test[arm])[name]) for arm in arms))
    Console().print(table)


def _measure(result: dict[str, Any]) -> str:
    return "Accuracy" if result["task"] == "answering" else "AUROC"


def _lines(found: dict[str, Any]) -> dict[str, Any]:
    """The lines of a table: accuracies of answers, or AUROC of labels with what else is known of classes."""
    if "auroc" not in found:
        return found
    lines = {**found["auroc"]["labels"], "mean": found["auroc"]["macro"]}
    more = {"accuracy": "accuracy of classes", "macro_f1": "macro F1 of classes"}
    return lines | {text: found[name] for name, text in more.items() if name in found}


def _said(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _cautions(result: dict[str, Any]) -> list[str]:
    found, test = [], result["test"]
    if result.get("left_out_rows"):
        found.append(f"{result['left_out_rows']} rows are no whole pairs; rejects.jsonl says why.")
    if result.get("truncated_questions"):
        found.append(f"{result['truncated_questions']} questions are longer than the text encoder reads and were cut.")
    if result.get("answers_from") == "all":
        found.append("Answers of validate and test were offered to the model: it knows what is answered there.")
    if test is None:
        found.append("There is no test pair: nothing was judged.")
    else:
        if test.get("answers_outside_vocabulary"):
            count = test["answers_outside_vocabulary"]
            found.append(f"{count} test questions have an answer that training never gives; they count as wrong.")
        if test.get("shuffled_image", {}).get("reason"):
            found.append(f"No image could be exchanged: {test['shuffled_image']['reason']}.")
    return found + patient_cautions(result)


def patient_cautions(result: dict[str, Any]) -> list[str]:
    """Say what must be known of the patients behind a result of pairs.

    Args:
        result: Of a fine-tuning, an evaluation or a retrieval.
    """
    found, test = [], result["test"]
    if test is not None and test["patients_seen_in_training"]:
        count = test["patients_seen_in_training"]
        found.append(f"{count} test patients were seen in training; the numbers are too good.")
    if not result["patients_of_pretraining_known"]:
        found.append("Which patients the adaptor was pre-trained on is not known: nobody checked them.")
    if not result["patient_column"]:
        found.append("The table has no patient column: every row is taken as its own patient.")
    return found
