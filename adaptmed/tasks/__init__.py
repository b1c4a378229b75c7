"""What is predicted and how it is judged: one folder a task, and one frame for all of them."""

from importlib import import_module
from typing import TYPE_CHECKING

from adaptmed.errors import InputError, sentence

if TYPE_CHECKING:
    from adaptmed.tasks.task import Task

TASKS = {
    "classification": "adaptmed.tasks.classification.task:Classification",
    "segmentation": "adaptmed.tasks.segmentation.task:Segmentation",
    "answering": "adaptmed.tasks.pairs.task:Pairs",
    "image-text-classification": "adaptmed.tasks.pairs.task:Pairs",
}
"""Name of a task → its class, imported when it is asked for."""


def task_class(name: str) -> "type[Task]":
    """Import the class of a task.

    Raises:
        InputError: There is no such task.
    """
    if name not in TASKS:
        expected = f"one of {', '.join(TASKS)}"
        raise InputError(sentence("task", expected=expected, got=repr(name), fix="Check the spelling."))
    module, _, found = TASKS[name].partition(":")
    return getattr(import_module(module), found)
