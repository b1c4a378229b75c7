"""The exceptions of adaptmed and the one sentence they speak in: what was expected, where, what came, the way out."""


class AdaptmedError(Exception):
    """Base of every error that adaptmed raises on purpose; the command line prints it without a traceback."""


class InputError(AdaptmedError, ValueError):
    """An argument, a file, a row or a column is not what was expected."""


class MissingExtraError(AdaptmedError, ImportError):
    """An optional dependency is not installed; the message names the extra to install."""


class FingerprintError(AdaptmedError):
    """Frozen weights are not those that a saved adaptor or a bank was made with; the message names both values."""


class BankError(AdaptmedError):
    """A bank is incomplete, damaged, foreign, or lacks a part that was asked for."""


class OverlapError(AdaptmedError):
    """Patients that a run has seen would be used to judge it."""


class NonFiniteLossError(AdaptmedError):
    """A loss became NaN or infinite; the message names the items of that batch."""


class LostProcessError(AdaptmedError):
    """Another process of those that work together has ended; its own message says why."""


class TerminatedError(KeyboardInterrupt):
    """The process was asked to end by SIGTERM; a checkpoint has been written."""


def sentence(name: str, *, expected: str, got: object, fix: str) -> str:
    """Build the one sentence every error speaks in.

    Args:
        name: The argument, file, row or column at fault.
        expected: What would have been right.
        got: What came.
        fix: The way out, an instruction.

    Returns:
        ``"`name`: expected <expected>, but got <got>. <fix>"``.

    Example:
        >>> sentence("fraction", expected="a number in (0, 1]", got=2.0, fix="Pass for example 0.01.")
        '`fraction`: expected a number in (0, 1], but got 2.0. Pass for example 0.01.'
    """
    return f"`{name}`: expected {expected}, but got {got}. {fix}"


def missing_extra(package: str, extra: str) -> MissingExtraError:
    """Build the error for an optional package that is not installed.

    Example:
        >>> print(missing_extra("onnx", "demo"))
        `onnx`: expected the package to be installed, but got an import failure. Run: pip install 'adaptmed[demo]'
    """
    return MissingExtraError(
        sentence(
            package,
            expected="the package to be installed",
            got="an import failure",
            fix=f"Run: pip install 'adaptmed[{extra}]'",
        )
    )
