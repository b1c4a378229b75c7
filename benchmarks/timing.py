"""Compare two ways of doing the same thing in one run: alternating rounds, medians, and the median of the ratios."""

import statistics
import time
from collections.abc import Callable


def compare(
    name: str, ways: dict[str, Callable[[], None]], *, rounds: int = 7, per_round: float = 1
) -> dict[str, float]:
    """Run every way once per round, in turn, after one round that does not count; print and return medians.

    Args:
        name: What is compared.
        ways: Name -> one repetition.
        rounds: Counted rounds.
        per_round: Items of one repetition, to print items per second.

    Returns:
        Median seconds by name.
    """
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds + 1):
        for way, repetition in ways.items():
            started = time.perf_counter()
            repetition()
            if number:
                seconds[way].append(time.perf_counter() - started)
    medians = {way: statistics.median(times) for way, times in seconds.items()}
    print(f"\n{name} ({rounds} rounds)")
    for way, median in medians.items():
        print(f"  {way:32s} {median * 1000:10.1f} ms   {per_round / median:10.1f} items/s")
    first, *others = ways
    for other in others:
        ratio = statistics.median(b / a for a, b in zip(seconds[first], seconds[other], strict=True))
        print(f"  {other} ÷ {first}: {ratio:.3f} in time")
    return medians
