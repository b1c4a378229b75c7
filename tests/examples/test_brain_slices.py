import csv
import importlib.util
import re
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import map_coordinates

SCRIPT = Path(__file__).parents[2] / "examples" / "brain_slices.py"
AXES = {"sagittal": 0, "coronal": 1, "axial": 2}
SIGNS = {"left": -1, "right": 1, "behind": -1, "in front": 1, "below": -1, "above": 1}


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("brain_slices", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(script, tmp_path_factory):
    folder = tmp_path_factory.mktemp("brain")
    script.main(out=folder, prepare_only=True)
    return folder


@pytest.fixture(scope="module")
def rows(folder):
    with (folder / "manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def maps():
    from nilearn.datasets import load_mni152_gm_template, load_mni152_wm_template

    images = [load(resolution=1) for load in (load_mni152_gm_template, load_mni152_wm_template)]
    return [image.get_fdata() for image in images], images[0].affine


def plane_of(row):
    (plane,) = (name for name in AXES if row[name] == "1")
    return plane


def test_six_hundred_slices_of_three_planes(rows, folder):
    assert len(rows) == len({row["image"] for row in rows}) == 600
    assert {plane: sum(row[plane] == "1" for row in rows) for plane in AXES} == dict.fromkeys(AXES, 200)
    for row in rows[::29]:
        with Image.open(folder / row["image"]) as image:
            assert image.mode == "L"
            assert np.asarray(image).max() > 150
    for label in ("mostly_grey", "large"):
        assert 0.1 < sum(row[label] == "1" for row in rows) / 600 < 0.9


def test_slabs_stand_in_one_split_and_do_not_touch(rows, script):
    split = {}
    for row in rows:
        assert split.setdefault(row["patient"], row["split"]) == row["split"]
        assert row["patient"].startswith(plane_of(row))
    assert len(split) == 60
    assert sorted(split.values()) == ["test"] * 12 + ["train"] * 42 + ["validate"] * 6
    for plane in script.PLANES:
        places = list(script.positions(plane))
        gaps = [b - a for (one, a), (two, b) in pairwise(places) if one != two]
        assert min(gaps) > 1.5


def test_every_sentence_is_true(rows, maps):
    """Plane, direction, distance and shares are read from the sentence and found again in the tissue maps."""
    volumes, affine = maps
    places = {plane: [] for plane in AXES}
    for row in rows:
        text, plane = row["text"], plane_of(row)
        assert re.match(rf"{plane}|brain in the {plane} plane", text, re.IGNORECASE)
        signs = [sign for word, sign in SIGNS.items() if re.search(rf"mm {word}\b", text)]
        distance = re.search(r"(\d+) mm", text)
        places[plane].append(int(distance[1]) * signs[0] if distance else 0)
        assert len(signs) == bool(distance)
    for stated in places.values():
        assert stated == sorted(stated)
        assert stated[0] < -50
        assert stated[-1] > 60
    for row in rows[::13]:
        grey, area = shares(volumes, affine, plane_of(row), places[plane_of(row)], row)
        percents = [int(number) for number in re.findall(r"(\d+) %", row["text"])]
        assert percents[0] + percents[1] == 100
        assert abs(percents[0] - 100 * grey) < 3
        assert abs(percents[2] - 100 * area) < 2


def shares(volumes, affine, plane, stated, row):
    """Grey share and tissue area at the stated position, by an interpolation of its own."""
    axis = AXES[plane]
    position_mm = stated[int(row["image"][-7:-4])]
    voxel = (np.linalg.inv(affine) @ np.append(np.eye(3)[axis] * position_mm, 1))[axis]
    grid = list(np.meshgrid(*(np.arange(size) for k, size in enumerate(volumes[0].shape) if k != axis), indexing="ij"))
    grid.insert(axis, np.full(grid[0].shape, voxel))
    grey, white = (map_coordinates(volume, grid, order=1) for volume in volumes)
    return grey.sum() / (grey + white).sum(), (grey + white > 0.5).mean()


def test_labels_follow_the_stated_shares(rows, script):
    for row in rows:
        grey = int(re.search(r"grey matter makes up (\d+) %|(\d+) % (?:is )?grey", row["text"])[0].split(" %")[0][-2:])
        area = int(re.search(r"(\d+) % of the picture", row["text"])[1])
        for stated, limit, label in ((grey, script.GREY, "mostly_grey"), (area, script.LARGE, "large")):
            if abs(stated - 100 * limit) > 1:
                assert (row[label] == "1") == (stated > 100 * limit)


def test_the_four_commands_are_called_in_order(script, tmp_path, monkeypatch, capsys):
    called = []
    monkeypatch.setattr(script, "prepare", lambda out: out / "manifest.csv")
    monkeypatch.setattr(script.subprocess, "run", lambda words, check: called.append((words, check)))
    script.main(out=tmp_path)
    assert [words[:4] for words, _ in called] == [
        [sys.executable, "-m", "adaptmed", name] for name in ("check", "embed", "pretrain", "study")
    ]
    assert all(check for _, check in called)
    assert "no benchmark" in capsys.readouterr().out
    assert "no benchmark" in script.__doc__
