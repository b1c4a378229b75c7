"""The ``adaptmed`` command: one file per command, imported when that command is asked for."""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from cyclopts import App, Parameter

from adaptmed import __version__
from adaptmed.errors import AdaptmedError, InputError, TerminatedError, sentence

COMMANDS = (
    "demo",
    "doctor",
    "phantom",
    "check",
    "embed",
    "pretrain",
    "calibrate",
    "study",
    "finetune",
    "evaluate",
    "predict",
)
SHARED = ("embed", "pretrain", "calibrate", "finetune")
"""Commands whose work several processes share when torchrun starts them; of `finetune` that for pairs alone."""

_HELP = """Small cross-modal adapters on frozen pretrained encoders, for medical images and texts.

The way from a table of images and reports to a result:

1. `adaptmed doctor` tells whether this machine is ready; `adaptmed demo` shows the whole way on made-up pictures.
2. `adaptmed check` reads the table and tells what is wrong with it.
3. `adaptmed embed` runs the frozen encoders once and writes their tokens to disk, into a bank.
4. `adaptmed pretrain` trains the fusion between both encoders from that bank; what hid words and patches there
   (`--method umd`, `m3ae`) can go on with `adaptmed calibrate` on the images and questions of a task.
5. `adaptmed study` compares it with frozen baselines at 1 %, 10 % and 100 % of the labels.
6. `adaptmed finetune` tunes it for the labels, with LoRA inside the image encoder if asked, and writes a head; for
   masks it trains a decoder, with which `adaptmed predict` writes the masks of new images. Questions are answered, and
   images with their texts classified, with `--task answering` and `--task image-text-classification`.
7. `adaptmed evaluate` judges a tuned run again, on the test split of any bank of the same encoders, or how a
   pre-trained one retrieves, with `--task retrieval`.

Every command can be stopped and run again. Exit code 0 means that the work is whole, 1 that it is not, 2 that the
command was not understood, 130 that it was stopped from the keyboard, 143 that SIGTERM stopped it with a checkpoint.
"""


def build() -> App:
    """Return the command line application; no command is imported yet."""
    app = App(
        name="adaptmed",
        help=_HELP,
        help_format="markdown",
        version=__version__,
        default_parameter=Parameter(negative_iterable=()),
        suppress_keyboard_interrupt=False,
    )
    for name in COMMANDS:
        app.command(f"adaptmed.cli.{name}:{name}", name=name)
    return app


def main(tokens: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and leave with its exit code.

    Args:
        tokens: The words after ``adaptmed``; those of this process when left out.

    Raises:
        SystemExit: Always. 0: the work is whole; 1: an error, said in one sentence; 2: the command line was not
            understood; 130: stopped from the keyboard; 143: by SIGTERM, with a checkpoint. Errors that adaptmed
            does not know keep their traceback.
    """
    words = list(sys.argv[1:] if tokens is None else tokens)
    app = build()
    try:
        if words[:1] in ([], ["--help"], ["-h"]):  # the overview shows each command's own first sentence
            for name in COMMANDS:
                app[name]
        _require_one_process(words)
        app(words)
    except AdaptmedError as error:
        _say("[bold red]Error:[/] ", str(error))
        _tell_torchrun(error)
        sys.exit(1)
    except TerminatedError:
        _say("", "Stopped by SIGTERM with a checkpoint; run the same command again to continue.")
        sys.exit(143)
    except KeyboardInterrupt:
        _say("", "Stopped; run the same command again to continue.")
        sys.exit(130)
    sys.exit(0)


def _require_one_process(words: Sequence[str]) -> None:
    """Refuse a command that every process under torchrun would do on its own, into the same folder."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if "TORCHELASTIC_RUN_ID" in os.environ and processes > 1 and words and words[0] in set(COMMANDS) - set(SHARED):
        fix = f"Start it without torchrun; {', '.join(SHARED)} share their work."
        raise InputError(sentence(words[0], expected="one process", got=f"{processes} under torchrun", fix=fix))


def _tell_torchrun(error: AdaptmedError) -> None:
    """Leave the reason where torchrun looks for it, so that its summary names the process that failed first and why."""
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error)


def _say(label: str, text: str) -> None:
    """Print one unwrapped line to the error stream; ``text`` is shown as it is."""
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True).print(Text.from_markup(label) + Text(text), soft_wrap=True)
