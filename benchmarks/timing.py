"""Compare two ways of doing the same thing in one run: alternating rounds, medians, and the median of the ratios."""

import statistics
import time
from collections.abc import Callable


def compare(
    name: str, ways: dict[str, Callable[[], None]], *, rounds: int = 7, items: dict[str, float] | None = None
) -> dict[str, float]:
    """Run every way once per round, in turn, after one round that does not count; print and return medians.

    Args:
        name: What is compared.
        ways: Name -> one repetition.
        rounds: Counted rounds.
        items: Items of one repetition of each way, 1 where none is given.

    Returns:
        Median seconds per item, by name.
    """
    count = dict.fromkeys(ways, 1.0) | (items or {})
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds + 1):
        for way, repetition in ways.items():
            started = time.perf_counter()
            repetition()
            if number:
                seconds[way].append((time.perf_counter() - started) / count[way])
    medians = {way: statistics.median(times) for way, times in seconds.items()}
    print(f"\n{name} ({rounds} rounds)")
    for way, median in medians.items():
        print(f"  {way:32s} {median * count[way] * 1000:10.1f} ms   {1 / median:10.1f} items/s")
    first, *others = ways
    for other in others:
        ratio = statistics.median(b / a for a, b in zip(seconds[first], seconds[other], strict=True))
        print(f"  {other} ÷ {first}: {ratio:.3f} in time per item")
    return medians
