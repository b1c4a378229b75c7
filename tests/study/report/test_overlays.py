import io

import numpy as np
from PIL import Image

from adaptmed.study.report.overlays import colours, draw_overlay


def opened(png):
    return np.asarray(Image.open(io.BytesIO(png)))


def test_labels_are_drawn_in_their_colour_and_nothing_on_padding():
    image = np.full((12, 12, 3), 0.5)
    truth = np.zeros((12, 12), dtype=np.int64)
    truth[:, :3], truth[4:9, 5:10] = -1, 2
    classes = np.zeros((12, 12), dtype=np.uint8)
    classes[:, :5] = 1  # half of it lies on padding
    overlay = draw_overlay("row", image, truth, {"arm": classes})
    assert list(overlay.pictures) == ["image", "truth", "arm"]
    plain, true, said = (opened(png) for png in overlay.pictures.values())
    first, second = (tuple(bytes.fromhex(colour[1:])) for colour in colours(["one", "two"]).values())
    assert {tuple(pixel) for pixel in plain.reshape(-1, 3)} == {(128, 128, 128)}
    assert tuple(true[4, 5]) == second  # an edge
    assert tuple(said[0, 4]) == first
    for picture, changed in ((true, truth > 0), (said, (classes > 0) & (truth == 0))):
        assert np.array_equal((picture != plain).any(axis=-1), changed)
