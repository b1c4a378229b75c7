"""One seed for everything random in a step."""


def step_seed(seed: int, step: int) -> int:
    """One number per (seed, step), for torch's generators.

    Example:
        >>> step_seed(0, 1) != step_seed(1, 0)
        True
    """
    return (seed * 1_000_003 + step) % 2**63
