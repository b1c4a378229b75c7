"""Words for a phantom study: a report that states and denies findings, and questions with their answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from adaptmed.data.phantom.findings import FINDINGS, Finding

_GRADES = {
    "small": ("small", "tiny", "minor", "subtle"),
    "moderate": ("moderate", "medium-sized", "mid-sized"),
    "large": ("large", "big", "marked", "pronounced"),
}
_HEART_GRADES = {
    "small": ("mild", "slight", "borderline"),
    "moderate": ("moderate", "definite"),
    "large": ("marked", "pronounced", "severe"),
}
_STATED = {
    "effusion": (
        "{grade} {side} pleural effusion.",
        "there is a {grade} pleural effusion on {where}.",
        "{grade} {side} effusion blunting the costophrenic angle.",
        "{grade} amount of pleural fluid on {where}.",
        "fluid layers at the base on {where}, {grade} in amount.",
        "meniscus of a {grade} effusion on {where}.",
        "{side} basal pleural effusion, {grade}.",
    ),
    "pneumothorax": (
        "{grade} {side} pneumothorax.",
        "there is a {grade} pneumothorax on {where}.",
        "{grade} apical pneumothorax on {where}.",
        "a thin pleural line marks a {grade} {side} pneumothorax.",
        "pleural air at the {side} apex, {grade} in extent.",
        "the {side} lung is partly collapsed by a {grade} pneumothorax.",
    ),
    "consolidation": (
        "{grade} consolidation in the {side} {zone} zone.",
        "{grade} airspace opacity in the {zone} zone of the {side} lung.",
        "patchy {grade} consolidation, {side} {zone} zone.",
        "there is a {grade} opacity projecting over the {side} {zone} lung.",
        "the {zone} part of the {side} lung shows a {grade} consolidation.",
        "hazy airspace opacification of {grade} extent in the {side} {zone} zone.",
    ),
    "nodule": (
        "{mm} mm nodule in the {side} {zone} zone.",
        "a {grade} round nodule is seen in the {zone} zone of the {side} lung.",
        "solitary {side} {zone} zone nodule of {mm} mm.",
        "there is a {grade} nodular density, {side} {zone} zone.",
        "well-defined nodule, about {mm} mm, in the {side} {zone} lung.",
        "the {side} {zone} zone contains a {grade} nodule of {mm} mm.",
    ),
    "cardiomegaly": (
        "{grade} cardiomegaly.",
        "there is {grade} enlargement of the heart.",
        "the heart is enlarged, {grade} in degree.",
        "enlarged cardiac silhouette, {grade}.",
        "{grade} increase of the heart size.",
        "the cardiothoracic ratio is raised in keeping with {grade} cardiomegaly.",
    ),
}
_DENIED = {
    "effusion": (
        "no pleural effusion.",
        "the costophrenic angles are sharp.",
        "without pleural effusion.",
        "both pleural bases are free of fluid.",
        "pleural fluid is not seen.",
    ),
    "pneumothorax": (
        "no pneumothorax.",
        "without evidence of pneumothorax.",
        "both apices are free of pleural air.",
        "a pneumothorax is not seen.",
        "pneumothorax is absent.",
    ),
    "consolidation": (
        "no consolidation.",
        "the lungs are free of airspace opacity.",
        "without focal consolidation.",
        "airspace opacification is not identified.",
        "no opacity to suggest consolidation.",
    ),
    "nodule": (
        "no nodule.",
        "the lungs are free of nodules.",
        "without a suspicious nodule.",
        "a nodule is not identified.",
        "no nodular density.",
    ),
    "cardiomegaly": (
        "the heart size is normal.",
        "unremarkable cardiac silhouette.",
        "no cardiomegaly.",
        "the heart is not enlarged.",
        "normal cardiothoracic ratio.",
        "without enlargement of the heart.",
    ),
}
_FILLERS = (
    "frontal view.",
    "single upright projection.",
    "portable frontal picture.",
    "comparison: none available.",
    "technique: one frontal exposure.",
    "overlying devices are disregarded.",
)
_NORMAL = (
    "unremarkable study.",
    "normal heart and lungs, no pleural abnormality.",
    "no abnormality of heart, lungs or pleura.",
)
_ASKED = {
    "effusion": ("Is there a pleural effusion?", "Is pleural fluid present?"),
    "pneumothorax": ("Is there a pneumothorax?", "Is a pneumothorax present?"),
    "consolidation": ("Is there a consolidation?", "Is any airspace opacity present?"),
    "nodule": ("Is there a nodule?", "Is a lung nodule present?"),
    "cardiomegaly": ("Is the heart enlarged?", "Is there cardiomegaly?"),
}


@dataclass(frozen=True)
class Report:
    """A report and what it says, recorded as it was written.

    Attributes:
        text: One to six sentences.
        stated: Findings the text says are present: always all that are.
        denied: Findings the text says are absent; the other absent ones are not mentioned.
    """

    text: str
    stated: tuple[str, ...]
    denied: tuple[str, ...]


def write_report(findings: Mapping[str, Finding], rng: np.random.Generator) -> Report:
    """Write the report of one study.

    Every finding that is present is stated with its side, zone or size; of the absent ones some are denied, one by one
    or two in one sentence; the order is shuffled, and a sentence on technique or an impression may be added. A study
    without findings may get one sentence that denies all.

    Args:
        findings: What is present, by name.
        rng: The source of the choices.

    Returns:
        The report.

    Example:
        >>> write_report({"cardiomegaly": Finding("cardiomegaly")}, np.random.default_rng(0)).stated
        ('cardiomegaly',)
    """
    if not findings and rng.random() < 0.15:
        return Report(_sentence_case(_choose(_NORMAL, rng)), (), FINDINGS)
    absent = [name for name in FINDINGS if name not in findings]
    room = 5 - len(findings)
    denied = [name for name in absent if rng.random() < 0.6][:room]
    if not findings and not denied:
        denied = [_choose(absent, rng)]
    body = [_state(found, rng) for found in findings.values()] + _deny(denied, rng)
    body = [body[k] for k in rng.permutation(len(body))]
    if rng.random() < 0.4:
        body.insert(0, _choose(_FILLERS, rng))
    elif findings and rng.random() < 0.4:
        body.append(f"impression: {_list([*findings], 'and')}.")
    text = " ".join(_sentence_case(sentence) for sentence in body)
    return Report(text, tuple(findings), tuple(sorted(denied, key=FINDINGS.index)))


def write_questions(findings: Mapping[str, Finding], rng: np.random.Generator) -> list[tuple[str, str]]:
    """Write the questions on one study with their answers.

    Yes and no are asked for about equally often; what is present is also asked for its side, zone and size.

    Args:
        findings: What is present, by name.
        rng: The source of the choices.

    Returns:
        Pairs of question and answer: yes, no, left, right, both, upper, mid, lower, small, moderate or large.

    Example:
        >>> write_questions({}, np.random.default_rng(0))[0][1]
        'no'
    """
    pairs = [pair for found in findings.values() for pair in _ask(found, rng)]
    absent = [name for name in FINDINGS if name not in findings]
    asked = rng.permutation(absent)[: max(1, len(findings))]
    return pairs + [(_choose(_ASKED[name], rng), "no") for name in asked]


def _ask(found: Finding, rng: np.random.Generator) -> list[tuple[str, str]]:
    pairs = [(_choose(_ASKED[found.name], rng), "yes")]
    if found.side:
        pairs.append((f"On which side is the {found.name}?", found.side))
    if found.name in ("consolidation", "nodule"):
        pairs.append((f"In which zone is the {found.name}?", found.zone))
    return [*pairs, (f"Is the {found.name} small, moderate or large?", found.grade)]


def _state(found: Finding, rng: np.random.Generator) -> str:
    """Say that a finding is present."""
    side = "bilateral" if found.side == "both" else found.side
    where = "both sides" if found.side == "both" else f"the {found.side}"
    grades = _HEART_GRADES if found.name == "cardiomegaly" else _GRADES
    grade = _choose(grades[found.grade], rng)
    template = _choose(_STATED[found.name], rng)
    return template.format(grade=grade, side=side, where=where, zone=found.zone, mm=found.diameter_mm)


def _deny(names: Sequence[str], rng: np.random.Generator) -> list[str]:
    """Say that findings are absent, sometimes two in one sentence."""
    if len(names) >= 2 and rng.random() < 0.5:
        first, second, *rest = (str(name) for name in rng.permutation(list(names)))
        opening = _choose(("no", "without", "no evidence of", "free of"), rng)
        pair = f"{opening} {_list([first, second], 'or')}."
        return [pair, *(_choose(_DENIED[name], rng) for name in rest)]
    return [_choose(_DENIED[name], rng) for name in names]


def _list(nouns: Sequence[str], last: str) -> str:
    return nouns[0] if len(nouns) == 1 else f"{', '.join(nouns[:-1])} {last} {nouns[-1]}"


def _sentence_case(text: str) -> str:
    return text[0].upper() + text[1:]


def _choose(options: Sequence[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]
