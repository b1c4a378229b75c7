"""What a phantom patient has: the five findings, where each lies, and how they are drawn by chance."""

from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np

FINDINGS = ("effusion", "pneumothorax", "consolidation", "nodule", "cardiomegaly")
PREVALENCE = {"effusion": 0.28, "pneumothorax": 0.20, "consolidation": 0.27, "nodule": 0.25, "cardiomegaly": 0.28}
_ZONES = ("upper", "mid", "lower")
_DOWN = {"upper": (0.20, 0.30), "mid": (0.42, 0.55), "lower": (0.66, 0.76)}  # share of the lung's height, from its apex
_LATENT = np.linalg.cholesky(
    np.array(
        [
            [1.00, 0.00, 0.25, 0.00, 0.30],
            [0.00, 1.00, 0.00, 0.00, 0.00],
            [0.25, 0.00, 1.00, 0.00, 0.00],
            [0.00, 0.00, 0.00, 1.00, 0.00],
            [0.30, 0.00, 0.00, 0.00, 1.00],
        ]
    )
)


@dataclass(frozen=True)
class Finding:
    """One finding in one study.

    Attributes:
        name: One of ``FINDINGS``.
        side: The patient's ``left`` or ``right`` (left is on the right of the picture), ``both`` for an effusion on
            both sides, empty for the heart.
        zone: ``upper``, ``mid`` or ``lower`` third of the lung; empty where it says nothing (heart).
        severity: In [0, 1]; 0 is the subtlest that is still called present.
        across: Where between the mediastinum (0) and the chest wall (1) a consolidation or nodule lies.
        down: Where between the apex (0) and the base (1) of the lung it lies.

    Example:
        >>> Finding("nodule", "left", "mid", severity=0.5).diameter_mm
        20
    """

    name: str
    side: str = ""
    zone: str = ""
    severity: float = 0.5
    across: float = 0.5
    down: float = 0.5

    @property
    def grade(self) -> str:
        """The severity as ``small``, ``moderate`` or ``large``."""
        if self.severity < 0.4:
            return "small"
        return "moderate" if self.severity < 0.75 else "large"

    @property
    def diameter_mm(self) -> int:
        """Diameter of a nodule, in millimetres, when the picture is read as 400 mm wide."""
        return round(11 + 19 * self.severity)

    def lies_on(self, side: str) -> bool:
        """Whether the finding is on that side."""
        return self.side in (side, "both")


def draw_findings(rng: np.random.Generator, studies: int) -> list[dict[str, Finding]]:
    """Draw the findings of one patient's studies.

    Whether a finding is present follows correlated normal variables (effusion with consolidation and with a large
    heart), half of whose variance belongs to the patient, so that studies of one patient resemble each other. A
    finding keeps its side and place from study to study; its severity is drawn anew.

    Args:
        rng: The patient's generator.
        studies: How many studies, at least 1.

    Returns:
        Per study the findings that are present, by name, in the order of ``FINDINGS``.

    Example:
        >>> draw_findings(np.random.default_rng(3), 2)[0].keys() <= set(FINDINGS)
        True
    """
    limits = np.array([NormalDist().inv_cdf(1 - PREVALENCE[name]) for name in FINDINGS])
    places = [_draw_place(rng, name) for name in FINDINGS]
    latent = rng.standard_normal((studies + 1, len(FINDINGS))) @ _LATENT.T
    present = (latent[0] + latent[1:]) / np.sqrt(2) > limits
    severities = rng.beta(1.1, 1.4, size=present.shape)
    return [
        _make_room({p.name: replace(p, severity=float(s)) for p, s, here in zip(places, *row, strict=True) if here})
        for row in zip(severities, present, strict=True)
    ]


def _draw_place(rng: np.random.Generator, name: str) -> Finding:
    """Draw side, zone and position of a finding as if it were present."""
    side = str(rng.choice(["left", "right"]))
    zone = str(rng.choice(_ZONES))
    across, down = float(rng.uniform(0.25, 0.75)), float(rng.uniform(*_DOWN[zone]))
    if name == "cardiomegaly":
        return Finding(name)
    if name == "effusion":
        return Finding(name, "both" if rng.random() < 0.25 else side, "lower")
    if name == "pneumothorax":
        return Finding(name, side, "upper")
    return Finding(name, side, zone, across=across, down=down)


def _make_room(findings: dict[str, Finding]) -> dict[str, Finding]:
    """Lift what an effusion of the same side would hide from the lower to the mid zone."""
    fluid = findings.get("effusion")
    return {
        name: replace(found, zone="mid", down=found.down - 0.22)
        if fluid and name in ("consolidation", "nodule") and found.zone == "lower" and fluid.lies_on(found.side)
        else found
        for name, found in findings.items()
    }
