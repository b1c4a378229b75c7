"""The part of ``adaptmed evaluate`` that looks for texts by images and for images by texts."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adaptmed.cli.finetune_pairs import patient_cautions

if TYPE_CHECKING:
    from adaptmed.bank import Bank


def evaluate_retrieval(run: Path, bank: "Bank", out: Path | None, options: dict[str, Any]) -> Path:
    """Judge the retrieval of a pre-trained run, write the result and print it.

    Args:
        run: Run folder of ``adaptmed pretrain``, or of a calibration.
        bank: Bank whose test pairs are judged.
        out: File to write; ``None`` is ``retrieval-<name of the bank>.json`` in the run folder.
        options: Of ``adaptmed.tasks.retrieval.judging.judge_retrieval``.

    Returns:
        The file that was written.
    """
    from adaptmed.files import write_text_whole
    from adaptmed.tasks.retrieval.judging import judge_retrieval

    result = judge_retrieval(run, bank, progress=True, **options)
    target = out or run / f"retrieval-{bank.folder.resolve().name}.json"
    write_text_whole(target, json.dumps(result, indent=2, allow_nan=False) + "\n")
    print_retrieval(result)
    return target


def print_retrieval(result: dict[str, Any]) -> None:
    """Print what must be said about a retrieval, and its scores beside those of a random order.

    Args:
        result: Of ``judge_retrieval``.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from adaptmed.cli.show import estimate

    console = Console(soft_wrap=True, highlight=False, markup=False)
    for caution in _cautions(result):
        console.print(caution)
    test = result["test"]
    arms = {"embedding": "by embedding", "reranked": f"first {result['top_k']} re-ranked", "chance": "by chance"}
    if "reason" in test["reranked"]:
        del arms["reranked"]
    counts = f"{test['pairs']} test pairs of {test['patients']} patients"
    table = Table("", "", *arms.values(), title=Text(f"Retrieval among {counts}", style="table.title"))
    for way, lines in test["embedding"].items():
        queries = test["queries"][way]
        for number, metric in enumerate(lines):
            where = f"{way} ({queries['n_queries']} among {queries['n_gallery']})" if number == 0 else ""
            table.add_row(where, Text(metric), *(estimate(test[arm][way][metric]) for arm in arms))
    Console().print(table)


def _cautions(result: dict[str, Any]) -> list[str]:
    found, test = list(result["notes"]), result["test"]
    if "reason" in test["reranked"]:
        found.append(f"Nothing was re-ranked: {test['reranked']['reason']}.")
    if test["pairs"] < test["pairs_of_split"]:
        found.append(f"{test['pairs']} of {test['pairs_of_split']} test pairs were drawn (seed {result['seed']}).")
    return found + patient_cautions(result)
