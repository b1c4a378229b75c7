"""Draws a study of a phantom patient: a chest-radiograph-like picture and the mask of its findings; no medical data."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import gaussian_filter

from adaptmed.data.phantom.anatomy import (
    Anatomy,
    Plane,
    Space,
    disc,
    draw_body,
    draw_bones,
    draw_vessels,
    place_patient,
    ridge,
    soft_step,
    stretch,
)
from adaptmed.data.phantom.findings import FINDINGS, Finding


def draw_study(
    anatomy: Anatomy, findings: Mapping[str, Finding], *, rng: np.random.Generator, image_size_px: int
) -> tuple[UInt8[np.ndarray, "height width_px"], UInt8[np.ndarray, "height width_px"]]:
    """Draw one study of a patient.

    Args:
        anatomy: The patient's build.
        findings: What is present, by name.
        rng: The study's generator: posture, exposure, noise, devices and other distractors.
        image_size_px: Height and width of the picture.

    Returns:
        The 8-bit picture, and the mask: 0 background, otherwise 1 + the finding's place in ``FINDINGS``. Where findings
        overlap, the later in ``cardiomegaly, effusion, pneumothorax, consolidation, nodule`` is kept.

    Example:
        >>> from adaptmed.data.phantom.anatomy import draw_anatomy
        >>> rng = np.random.default_rng(0)
        >>> picture, mask = draw_study(draw_anatomy(rng), {}, rng=rng, image_size_px=64)
        >>> picture.shape, int(mask.max())
        ((64, 64), 0)
    """
    space = place_patient(anatomy, findings, rng, image_size_px)
    mask = np.zeros((image_size_px, image_size_px), np.uint8)
    field = space.lung * (1 - space.heart)
    air, added = field.copy(), np.zeros_like(field)
    marks = draw_vessels(space, rng)
    if "cardiomegaly" in findings:
        _mark(mask, "cardiomegaly", space.heart > 0.5)
    if found := findings.get("effusion"):
        fluid = _fluid(space, found)
        _mark(mask, "effusion", fluid * field > 0.5)
        air *= 1 - 0.92 * fluid
    if found := findings.get("pneumothorax"):
        gap, line = _pleural_gap(space, found)
        _mark(mask, "pneumothorax", gap * space.lung > 0.5)
        marks *= 1 - gap
        added += (0.07 * line - 0.04 * gap) * air
    if found := findings.get("consolidation"):
        opacity = _opacity(space, found, rng)
        _mark(mask, "consolidation", opacity * field > 0.4)
        air *= 1 - (0.38 + 0.30 * found.severity) * opacity
    if found := findings.get("nodule"):
        spot = disc(space, *_centre(space, found), found.diameter_mm / 400, soft=0.012) * space.lung
        _mark(mask, "nodule", spot > 0.5)
        added += (0.12 + 0.10 * found.severity) * spot
    density = draw_body(space, anatomy) + draw_bones(space, anatomy) + added + air * (marks - 0.36)
    return _expose(density + _distractors(space, anatomy, rng), rng), mask


def _mark(mask: UInt8[np.ndarray, "height width_px"], name: str, where: np.ndarray) -> None:
    mask[where] = 1 + FINDINGS.index(name)


def _sides(space: Space, found: Finding) -> Plane:
    """1 on the finding's side or sides, 0 elsewhere."""
    return found.lies_on("left") * space.left + found.lies_on("right") * (1 - space.left)


def _fluid(space: Space, found: Finding) -> Plane:
    """Fluid at the base with a meniscus that climbs the chest wall."""
    here = _sides(space, found)
    level = (0.97 - 0.45 * found.severity) - 0.12 * np.clip(space.across, 0, 1) ** 5
    return here * soft_step(space.down - level, 0.02)


def _pleural_gap(space: Space, found: Finding) -> tuple[Plane, Plane]:
    """Air along the apex and the upper chest wall, and the thin line of the lung's edge."""
    here = _sides(space, found)
    depth = 0.16 + 0.24 * found.severity
    reach = 0.40 + 0.40 * found.severity
    rim = 1 - depth * np.clip(1 - space.down / reach, 0, 1) ** 0.6
    inside = np.where(space.down < reach, here, 0)
    return inside * soft_step(space.rim - rim, 0.02), inside * ridge(space.rim - rim, 0.028)


def _centre(space: Space, found: Finding) -> tuple[float, float]:
    """Where a consolidation or nodule lies: in the lung, beside the heart, nearest to its intended place."""
    miss = np.abs(space.rim - (0.3 + 0.6 * found.across)) + 4 * np.abs(space.down - found.down)
    miss += 3 * (1 - space.lung) + 3 * space.heart + 9 * (1 - _sides(space, found))
    nearest = np.unravel_index(np.argmin(miss), miss.shape)
    return float(space.x[nearest]), float(space.y[nearest])


def _opacity(space: Space, found: Finding, rng: np.random.Generator) -> Plane:
    """A soft, patchy opacity."""
    x, y = _centre(space, found)
    radius, aspect = 0.10 + 0.12 * found.severity, rng.uniform(0.8, 1.4)
    patches = stretch(rng.normal(0, 1, (24, 24)), space.x.shape[0])
    reach = np.hypot(space.x - x, (space.y - y) / aspect)
    blob = soft_step(radius - reach + 0.035 * patches, 0.08)
    return blob * np.clip(1 + 0.18 * patches, 0, 1.3)


def _distractors(space: Space, anatomy: Anatomy, rng: np.random.Generator) -> Plane:
    """Shadows that mean nothing: spots and blobs outside the lungs, skin folds, electrodes, lines, a pacemaker."""
    density = np.zeros_like(space.x)
    for _ in range(rng.integers(0, 4)):
        density += rng.uniform(0.08, 0.20) * disc(space, *_outside(anatomy, rng), rng.uniform(0.025, 0.07), soft=0.012)
    for _ in range(rng.integers(0, 3)):
        density += rng.uniform(0.06, 0.16) * disc(space, *_outside(anatomy, rng), rng.uniform(0.10, 0.22), soft=0.1)
    if rng.random() < 0.3:
        density += _skin_fold(space, anatomy, rng)
    return density + _devices(space.x.shape[0], rng)


def _outside(anatomy: Anatomy, rng: np.random.Generator) -> tuple[float, float]:
    """A place in the neck, the flank or the abdomen, off the lungs."""
    sign = _sign(rng)
    places = (
        (sign * rng.uniform(0.0, 0.25), rng.uniform(-1.0, anatomy.apex - 0.08)),
        (sign * (anatomy.thorax + rng.uniform(0.02, 0.12)), rng.uniform(anatomy.apex + 0.1, anatomy.base)),
        (sign * rng.uniform(0.1, 0.7), anatomy.base + rng.uniform(0.16, 0.40)),
    )
    return places[rng.integers(len(places))]


def _sign(rng: np.random.Generator) -> int:
    return 1 if rng.random() < 0.5 else -1


def _skin_fold(space: Space, anatomy: Anatomy, rng: np.random.Generator) -> Plane:
    """A long edge that runs on beyond the lung: looks like, and is not, the lung's edge in a pneumothorax."""
    sign, slope = _sign(rng), rng.uniform(-0.25, 0.25)
    offset = sign * anatomy.thorax * rng.uniform(0.65, 0.9) + slope * space.y - space.x
    reach = soft_step(space.y - rng.uniform(-0.8, -0.4), 0.1)
    return rng.uniform(0.04, 0.09) * reach * ridge(offset, 0.03)


def _devices(image_size_px: int, rng: np.random.Generator) -> Plane:
    """Electrodes with leads, a central line and a pacemaker, each by its own chance."""
    sheet = Image.new("L", (image_size_px, image_size_px))
    pen, size = ImageDraw.Draw(sheet), image_size_px
    if rng.random() < 0.35:
        for x, y in rng.uniform((0.12, 0.25), (0.88, 0.85), (rng.integers(2, 5), 2)) * size:
            radius = 0.016 * size
            pen.line([(x, y), (x + rng.normal(0, 0.1) * size, size)], fill=70, width=1)
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=150, outline=255)
    if rng.random() < 0.25:
        steps = np.linspace(0, 1, 24)[:, None]
        start, bend, end = rng.normal(((0.38, 0.02), (0.42, 0.25), (0.47, 0.5)), 0.025)
        curve = (1 - steps) ** 2 * start + 2 * steps * (1 - steps) * bend + steps**2 * end
        pen.line([(float(x), float(y)) for x, y in curve * size], fill=110, width=max(1, size // 128))
    if rng.random() < 0.08:
        x, y = rng.uniform((0.68, 0.20), (0.78, 0.28)) * size
        pen.rounded_rectangle((x, y, x + 0.11 * size, y + 0.09 * size), radius=0.03 * size, fill=230)
        pen.line([(x, y + 0.05 * size), (0.55 * size, 0.35 * size), (0.52 * size, 0.62 * size)], fill=130, width=2)
    return np.asarray(sheet, dtype=np.float32) * (0.35 / 255)


def _expose(density: Plane, rng: np.random.Generator) -> UInt8[np.ndarray, "height width_px"]:
    """Turn density into an 8-bit picture: blur, exposure, contrast, noise, a side letter and the word PHANTOM."""
    size = density.shape[0]
    image = gaussian_filter(density, rng.uniform(0.3, 0.9) * size / 256, truncate=3.0)
    image += stretch(rng.normal(0, 0.02, (3, 3)), size)
    image = np.clip((image - 0.08) * rng.uniform(1.0, 1.35) + rng.normal(0, 0.04), 0, 1)
    image = image ** rng.uniform(0.8, 1.35)
    image += rng.uniform(0.010, 0.035) * rng.standard_normal(density.shape, dtype=np.float32)
    sheet = Image.fromarray((np.clip(image, 0, 1) * 255).astype(np.uint8))
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(0.036 * size)
    pen.text((0.02 * size, 0.955 * size), "PHANTOM", fill=200, font=font, stroke_width=1, stroke_fill=0)
    if rng.random() < 0.7:
        letter, x = ("L", 0.92) if rng.random() < 0.7 else ("R", 0.04)
        font = ImageFont.load_default(rng.uniform(0.05, 0.09) * size)
        pen.text((x * size, rng.uniform(0.02, 0.12) * size), letter, fill=235, font=font)
    return np.asarray(sheet)
