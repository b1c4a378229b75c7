"""Tables and cautions that commands print: studies, labels, masks, pairs and retrieval, each with its intervals."""

from collections.abc import Iterable, Mapping
from typing import Any

ARMS = {
    "tuned": "tuned",
    "shuffled_image": "with another patient's image",
    "frozen": "frozen features",
    "question_only": "question alone",
    "text_only": "text alone",
    "majority": "most frequent answer",
}


def print_table(results: dict[str, Any]) -> None:
    """Print the summary over labels: one row per arm, one column per fraction, with intervals."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from adaptmed.study.report.kinds import kind_of
    from adaptmed.study.report.report import leak_mark
    from adaptmed.study.report.tables import NAMES, whole

    primary = kind_of(results["summaries"]).primary
    what = {"dice_positives": "masks", "accuracy": "training patients"}.get(primary, "labels")
    summaries = whole(results["summaries"], primary)
    fractions = sorted({row["fraction"] for row in summaries})
    for place in dict.fromkeys((row["dataset"], row["encoder"]) for row in summaries):
        here = [row for row in summaries if (row["dataset"], row["encoder"]) == place]
        title = Text(f"Mean {NAMES[primary]}, {', '.join(place)}{leak_mark(results)}", style="table.title")
        table = Table("arm", *(f"{fraction:.0%} of {what}" for fraction in fractions), title=title)
        for arm in dict.fromkeys(row["arm"] for row in here):
            cells = {row["fraction"]: estimate(row) for row in here if row["arm"] == arm}
            table.add_row(Text(arm), *(Text(cells.get(fraction, "")) for fraction in fractions))
        Console().print(table)


def estimate(row: Mapping[str, Any]) -> str:
    """A value with its interval, or why there is none."""
    if row["value"] is None:
        return f"undefined: {row['reason']}"
    if row["ci_low"] is None:
        return f"{row['value']:.3f}"
    return f"{row['value']:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}]"


def print_cautions(cautions: Iterable[str]) -> None:
    """Print what must be known of numbers, before the numbers."""
    from rich.console import Console

    console = Console(soft_wrap=True, highlight=False, markup=False)
    for caution in cautions:
        console.print(caution)


def patient_cautions(result: Mapping[str, Any], *, without_test: str | None = None) -> list[str]:
    """Say what must be known of the patients behind a result.

    Args:
        result: Of a fine-tuning, an evaluation or a retrieval.
        without_test: What is said where nothing was judged.
    """
    found, test = [], result["test"]
    if test is None and without_test is not None:
        found.append(without_test)
    if test is not None and test["patients_seen_in_training"]:
        count = test["patients_seen_in_training"]
        found.append(f"{count} test patients were seen in training; the numbers are too good.")
    if not result["patients_of_pretraining_known"]:
        found.append("Which patients the adaptor was pre-trained on is not known: nobody checked them.")
    if not result["patient_column"]:
        found.append("The table has no patient column: every row is taken as its own patient.")
    return found


def print_scores(task: str, result: Mapping[str, Any]) -> None:
    """Print the scores of a fine-tuning or of an evaluation, as its task measures them."""
    judged_again = "probe" not in (result["test"] or {"probe": None})
    if task == "segmentation":
        print_masks(result)
    elif task == "classification" and not judged_again:
        print_labels(result)
    elif task in ("classification", "answering", "image-text-classification"):
        print_pairs(result)
    else:
        print_arms(result)


def print_arms(result: Mapping[str, Any]) -> None:
    """Print the numbers of every arm of a task that has no table of its own."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    print_cautions(patient_cautions(result, without_test="There is no test row: nothing was judged."))
    arms = {name: found for name, found in (result["test"] or {}).items() if isinstance(found, Mapping)}
    table = Table("", *arms)
    for measure in dict.fromkeys(name for found in arms.values() for name in found):
        table.add_row(Text(measure), *(Text(f"{found.get(measure, '—')}") for found in arms.values()))
    if arms:
        Console().print(table)


def print_labels(result: Mapping[str, Any]) -> None:
    """Print the AUROC on the test images, tuned and before, with what must be said about them."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    print_cautions(patient_cautions(result, without_test="There is no labelled test image: nothing was judged."))
    test = result["test"]
    if test is None:
        return
    tuned, probe = (test[arm]["auroc"] for arm in ("tuned", "probe"))
    title = Text(f"AUROC on {test['images']} test images of {test['patients']} patients", style="table.title")
    table = Table("label", "tuned", "probe it started at", title=title)
    for name in tuned["labels"]:
        table.add_row(Text(name), estimate(tuned["labels"][name]), estimate(probe["labels"][name]))
    table.add_row("mean", estimate(tuned["macro"]), estimate(probe["macro"]))
    Console().print(table)


def print_masks(result: Mapping[str, Any]) -> None:
    """Print the scores of the test masks beside those of predicting nothing.

    Args:
        result: Of a fine-tuning on masks, or of an evaluation.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from adaptmed.study.report.tables import NAMES

    test = result["test"]
    rejected = result.get("rejected_masks") or (test or {}).get("rejected_masks")
    if rejected:
        print_cautions([f"{rejected} masks cannot be used; masks/rejects.jsonl says why."])
    print_cautions(patient_cautions(result, without_test="There is no test image with a mask: nothing was judged."))
    if test is None:
        return
    title = f"{test['images']} test images of {test['patients']} patients"
    table = Table("", "label", "tuned", "predicting nothing", title=Text(title, style="table.title"))
    for tuned, empty in zip(test["tuned"], test["empty"], strict=True):
        if tuned["value"] is not None:
            label = {"macro": "mean"}.get(tuned["label"], tuned["label"])
            plain = "—" if empty["value"] is None else f"{empty['value']:.3f}"
            table.add_row(Text(NAMES[tuned["metric"]]), Text(label), estimate(tuned), plain)
    Console().print(table)


def print_pairs(result: Mapping[str, Any]) -> None:
    """Print the scores of a model of pairs, or of labels judged again, beside those of the baselines.

    Args:
        result: Of a fine-tuning on pairs, or of an evaluation.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    print_cautions(_pair_cautions(result))
    test = result["test"]
    if test is None:
        return
    arms = [name for name in ARMS if name in test and "reason" not in test[name]]
    noun = "images" if result["task"] == "classification" else "pairs"
    measure = "Accuracy" if result["task"] == "answering" else "AUROC"
    title = f"{measure} on {test['pairs']} test {noun} of {test['patients']} patients"
    table = Table("", *(ARMS[name] for name in arms), title=Text(title, style="table.title"))
    for name in _lines(test["tuned"]):
        table.add_row(Text(name), *(estimate(_lines(test[arm])[name]) for arm in arms))
    Console().print(table)


def _lines(found: Mapping[str, Any]) -> dict[str, Any]:
    """The lines of a table: accuracies of answers, or AUROC of labels with what else is known of classes."""
    if "auroc" not in found:
        return dict(found)
    lines = {**found["auroc"]["labels"], "mean": found["auroc"]["macro"]}
    more = {"accuracy": "accuracy of classes", "macro_f1": "macro F1 of classes"}
    return lines | {text: found[name] for name, text in more.items() if name in found}


def _pair_cautions(result: Mapping[str, Any]) -> list[str]:
    found, test = [], result["test"] or {}
    if result.get("left_out_rows"):
        found.append(f"{result['left_out_rows']} rows are no whole pairs; rejects.jsonl says why.")
    if result.get("truncated_questions"):
        found.append(f"{result['truncated_questions']} questions are longer than the text encoder reads and were cut.")
    if result.get("answers_from") == "all":
        found.append("Answers of validate and test were offered to the model: it knows what is answered there.")
    if test.get("answers_outside_vocabulary"):
        count = test["answers_outside_vocabulary"]
        found.append(f"{count} test questions have an answer that training never gives; they count as wrong.")
    if test.get("shuffled_image", {}).get("reason"):
        found.append(f"No image could be exchanged: {test['shuffled_image']['reason']}.")
    return found + patient_cautions(result, without_test="There is no test pair: nothing was judged.")


def print_retrieval(result: Mapping[str, Any]) -> None:
    """Print the scores of a retrieval beside those of a random order.

    Args:
        result: Of ``judge_retrieval``.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    test = result["test"]
    arms = {"embedding": "by embedding", "reranked": f"first {result['top_k']} re-ranked", "chance": "by chance"}
    cautions = list(result["notes"])
    if "reason" in test["reranked"]:
        cautions.append(f"Nothing was re-ranked: {test['reranked']['reason']}.")
        del arms["reranked"]
    if test["pairs"] < test["pairs_of_split"]:
        cautions.append(f"{test['pairs']} of {test['pairs_of_split']} test pairs were drawn (seed {result['seed']}).")
    print_cautions([*cautions, *patient_cautions(result)])
    counts = f"{test['pairs']} test pairs of {test['patients']} patients"
    table = Table("", "", *arms.values(), title=Text(f"Retrieval among {counts}", style="table.title"))
    for way, lines in test["embedding"].items():
        queries = test["queries"][way]
        for number, metric in enumerate(lines):
            where = f"{way} ({queries['n_queries']} among {queries['n_gallery']})" if number == 0 else ""
            table.add_row(where, Text(metric), *(estimate(test[arm][way][metric]) for arm in arms))
    Console().print(table)
