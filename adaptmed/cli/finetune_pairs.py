"""What ``adaptmed finetune`` and ``adaptmed evaluate`` print of pairs."""

from typing import Any

ARMS = {
    "tuned": "tuned",
    "shuffled_image": "with another patient's image",
    "frozen": "frozen features",
    "question_only": "question alone",
    "text_only": "text alone",
    "majority": "most frequent answer",
}


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
