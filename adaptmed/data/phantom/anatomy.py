"""The healthy body of the phantom: build, coordinates, outlines, bones and lung markings.

Lengths are in half-widths of the picture: ``x`` runs from -1 (left edge, the patient's right) to 1, ``y`` from -1 (top)
to 1. ``across`` is the distance from the midline in half-widths of the thorax, ``down`` the share of the lung's height,
``rim`` is 1 at the chest wall. Density 0 is air outside the body, 1 is dense bone.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32
from PIL import Image

from adaptmed.data.phantom.findings import Finding

Plane = Float32[np.ndarray, "height width_px"]


@dataclass(frozen=True)
class Anatomy:
    """The build of one patient, in half-widths of the picture; ``bend`` is a coarse field that deforms all of it."""

    thorax: float
    apex: float
    base: float
    dome: float
    mediastinum: float
    heart_ratio: float
    heart_drop: float
    rib_spacing: float
    rib_slope: float
    clavicle: float
    breast: float
    tissue: float
    bend: Float32[np.ndarray, "2 5 5"]


@dataclass(frozen=True)
class Space:
    """Coordinates of every pixel in one study, soft outlines (0 to 1) of lungs and heart; ``left`` is 1 on the left."""

    x: Plane
    y: Plane
    left: Plane
    across: Plane
    down: Plane
    rim: Plane
    lung: Plane
    heart: Plane


def draw_anatomy(rng: np.random.Generator) -> Anatomy:
    """Draw the build of one patient."""
    return Anatomy(
        thorax=rng.uniform(0.60, 0.80),
        apex=rng.uniform(-0.80, -0.66),
        base=rng.uniform(0.38, 0.62),
        dome=rng.uniform(0.12, 0.24),
        mediastinum=rng.uniform(0.09, 0.15),
        heart_ratio=rng.uniform(0.40, 0.49),
        heart_drop=rng.uniform(0.20, 0.30),
        rib_spacing=rng.uniform(0.135, 0.175),
        rib_slope=rng.uniform(0.15, 0.40),
        clavicle=rng.uniform(-0.12, 0.06),
        breast=rng.uniform(0.4, 1.0) if rng.random() < 0.45 else 0.0,
        tissue=rng.uniform(0.50, 0.66),
        bend=rng.normal(0, 0.018, (2, 5, 5)).astype(np.float32),
    )


def place_patient(
    anatomy: Anatomy, findings: Mapping[str, Finding], rng: np.random.Generator, image_size_px: int
) -> Space:
    """Lay the patient's coordinates over the picture (posture, inspiration) and outline lungs and heart."""
    turn, scale, breath = math.radians(rng.normal(0, 2.5)), rng.uniform(0.93, 1.07), rng.normal(0, 0.035)
    axis = np.linspace(-1 / scale, 1 / scale, image_size_px, dtype=np.float32)
    column, row = axis[None, :] - rng.normal(0, 0.035), axis[:, None] - rng.normal(0, 0.035)
    x = math.cos(turn) * column + math.sin(turn) * row + stretch(anatomy.bend[0], image_size_px)
    y = math.cos(turn) * row - math.sin(turn) * column + stretch(anatomy.bend[1], image_size_px)
    left = (x > 0).astype(np.float32)
    across = np.abs(x) / anatomy.thorax
    base = anatomy.base + breath + 0.03 * left
    down = (y - anatomy.apex) / (base - anatomy.apex)
    height = np.clip(down, 0, 1)
    wall = np.sqrt(height * (2 - height))
    floor = base - anatomy.dome * (1 - ((across - 0.42) / 0.58) ** 2) - y
    side = (wall - across) * anatomy.thorax
    inner = across * anatomy.thorax - anatomy.mediastinum
    lung = soft_step(np.minimum(side, np.minimum(floor, inner)), 0.012)
    heart = _heart(anatomy, findings, x, y - anatomy.base - breath)
    return Space(x, y, left, across, down, across / np.maximum(wall, 0.05), lung, heart)


def _heart(anatomy: Anatomy, findings: Mapping[str, Finding], x: Plane, above: Plane) -> Plane:
    """Outline the heart; its width is a share of the thorax, so that size alone does not tell a large one."""
    large = findings.get("cardiomegaly")
    ratio = 0.53 + 0.13 * large.severity if large else anatomy.heart_ratio
    width = 2 * anatomy.thorax * ratio
    across = x / (width * np.where(x > 0, np.float32(0.64), np.float32(0.36)))
    down = (above + anatomy.heart_drop - 0.25 * x) / (0.25 + 0.20 * width)
    return soft_step(0.3 - 0.3 * np.sqrt(across * across + down * down), 0.02)


def draw_body(space: Space, anatomy: Anatomy) -> Plane:
    """Neck, shoulders, trunk, heart, mediastinum and breasts."""
    waist = anatomy.thorax + 0.14
    half_width = 0.24 + (waist - 0.24) * soft_step(space.y - (anatomy.apex - 0.08), 0.16)
    trunk = soft_step(half_width - np.abs(space.x), 0.03)
    thick = anatomy.tissue - 0.14 * np.clip(space.across, 0, 1.3) ** 2
    density = trunk * (thick + 0.10 * soft_step(space.down - 0.95, 0.2)) + 0.06 * space.heart
    density += 0.07 * ridge(space.x, 2.2 * anatomy.mediastinum)
    if anatomy.breast:
        size = 0.26 + 0.10 * anatomy.breast
        for side in (-1, 1):
            shade = disc(space, side * 0.62 * anatomy.thorax, anatomy.base - 0.20, size, soft=0.05, aspect=0.8)
            density += (0.07 * anatomy.breast) * shade
    return density


def draw_bones(space: Space, anatomy: Anatomy) -> Plane:
    """Spine, the back and front arcs of the ribs, and the collar bones."""
    cage = soft_step((1.04 - space.rim) * 0.5, 0.03) * soft_step(1.15 - space.down, 0.08)
    bones = 0.07 * ridge(space.x, 0.085)
    bones *= 1 + 0.4 * np.sin(space.y * (2 * np.pi / (0.8 * anatomy.rib_spacing)))
    spacing = 2 * np.pi / anatomy.rib_spacing
    for slope, strength in ((anatomy.rib_slope, 0.055), (-1.2 * anatomy.rib_slope, 0.03)):
        arc = np.cos(spacing * (space.y - slope * space.across**2))
        bones += cage * strength * soft_step(arc - 0.45, 0.45)
    height = anatomy.apex + 0.14 + anatomy.clavicle * (space.across - 0.2)
    reach = soft_step(1.15 - space.across, 0.05) * soft_step(space.across - 0.12, 0.03)
    bones += 0.11 * reach * ridge(space.y - height, 0.035)
    return bones


def draw_vessels(space: Space, rng: np.random.Generator) -> Plane:
    """Lung markings: streaky, strongest beside the heart, with a few vessels seen end-on."""
    size = space.x.shape[0]
    streaks = np.abs(stretch(rng.normal(0, 1, (36, 28)), size)) + np.abs(stretch(rng.normal(0, 1, (64, 72)), size))
    near = np.clip(1.25 - np.hypot(space.across * 1.1, (space.down - 0.5) * 1.2), 0.15, 1)
    marks = 0.075 * near * near * streaks
    for x, y in rng.uniform((-0.35, -0.30), (0.35, 0.15), (rng.integers(2, 6), 2)).tolist():
        marks += 0.10 * disc(space, x, y, rng.uniform(0.008, 0.018), soft=0.01)
    return marks


def soft_step(distance: Float32[np.ndarray, "..."], soft: float) -> Float32[np.ndarray, "..."]:
    """Turn a signed distance (positive inside) into a smooth step from 0 to 1, ``2 * soft`` wide."""
    step = distance * (0.5 / soft)
    step += 0.5
    np.clip(step, 0, 1, out=step)
    return step * step * (3 - 2 * step)


def ridge(distance: Plane, width: float) -> Plane:
    """A smooth ridge of height 1 where the distance is 0, gone beyond ``width``."""
    scaled = distance * (1 / width)
    height: Plane = np.clip(1 - scaled * scaled, 0, 1)
    return height * height


def disc(space: Space, x: float, y: float, radius: float, *, soft: float, aspect: float = 1.0) -> Plane:
    """A soft disc (an ellipse ``aspect`` times as high as wide) of height 1."""
    reach = radius + soft
    near = np.nonzero((np.abs(space.x - x) < reach) & (np.abs(space.y - y) < reach * aspect))
    shade = np.zeros_like(space.x)
    shade[near] = soft_step(radius - np.hypot(space.x[near] - x, (space.y[near] - y) / aspect), soft)
    return shade


def stretch(field: np.ndarray, image_size_px: int) -> Plane:
    """Enlarge a coarse field smoothly to the picture's size."""
    size = (image_size_px, image_size_px)
    return np.asarray(Image.fromarray(field.astype(np.float32)).resize(size, Image.Resampling.BICUBIC))
