import re
from html.parser import HTMLParser

import numpy as np
import pytest

from adaptmed.study.report.plots import Maps, learning_curves, project_2d, sample_rows
from adaptmed.study.report.report import RetrievalExample, Shown, headlines, write_report

VOID = {"meta", "img", "br"}
PNG = b"\x89PNG\r\n\x1a\n"


def row(arm, fraction, value, *, metric="auroc", label="macro", encoder="image + text", **more):
    low, high = (None, None) if value is None else (value - 0.02, value + 0.02)
    return {
        "arm": arm, "task": "multilabel", "dataset": "phantom", "encoder": encoder, "label": label,
        "fraction": fraction, "metric": metric, "value": value, "ci_low": low, "ci_high": high, "reason": None,
        "n_train": 40, "n_test": 100, "n_positive": None, "trainable_parameters": 771, "seconds": 2.5, "n_seeds": 5,
    } | more  # fmt: skip


def gap(arm, baseline, fraction, difference, *, metric="auroc", label="macro", encoder="image + text"):
    return {
        "arm": arm, "baseline": baseline, "dataset": "phantom", "encoder": encoder, "fraction": fraction,
        "metric": metric, "label": label, "difference": difference, "ci_low": difference - 0.02,
        "ci_high": difference + 0.02, "p_value": 0.004, "n_seeds": 5, "reason": None,
    }  # fmt: skip


def results(*encoders):
    values = {"frozen": (0.81, 0.94), "adaptor-untrained": (0.78, 0.92), "adaptor": (0.87, 0.945)}
    summaries, comparisons = [], []
    for encoder in encoders or ("image + text",):
        for metric in ("auroc", "average_precision", "ece"):
            for label in ("macro", "effusion", "nodule"):
                for arm, pair in values.items():
                    summaries += [
                        row(arm, fraction, value, metric=metric, label=label, encoder=encoder)
                        for fraction, value in zip((0.01, 1.0), pair, strict=True)
                    ]
        for baseline in ("frozen", "adaptor-untrained"):
            for place, fraction in enumerate((0.01, 1.0)):
                difference = values["adaptor"][place] - values[baseline][place]
                comparisons.append(gap("adaptor", baseline, fraction, difference, encoder=encoder))
    found = [
        {"arm": "adaptor", "direction": "image to text", "metric": metric, "value": 0.4, "ci_low": 0.3, "ci_high": 0.5}
        | {"n_queries": 100, "n_gallery": 90}
        for metric in ("R@1", "R@5", "median_rank")
    ]
    zero = [row("adaptor", 0.0, 0.7, label=label) for label in ("effusion", "macro")]
    return {"summaries": summaries, "comparisons": comparisons, "retrieval": found, "zero_shot": zero, "settings": {}}


class Outline(HTMLParser):
    """Collects headings, visible text and addresses, and checks that every element is closed."""

    def __init__(self, page):
        super().__init__()
        self.open, self.text, self.addresses, self.headings = [], [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text.append(data)
            if self.open and self.open[-1] in ("h2", "h3", "caption"):
                self.headings.append(data)


def render(tmp_path, **kwargs):
    write_report(tmp_path / "report.html", **kwargs)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    return page, Outline(page)


def everything():
    random = np.random.default_rng(0)
    maps = Maps(random.normal(size=(30, 2)), random.normal(size=(30, 2)), random.integers(0, 2, (30, 2)), ("a", "b"))
    example = RetrievalExample(
        PNG, "Left <b>effusion</b> & more", ("<script>alert(1)</script>", "clear"), (True, False)
    )
    facts = {
        "title": "A <i>title</i>", "encoders": {"image": "timm:vit", "fingerprint": "0123456789abcdef" * 4},
        "cautions": ["generated pictures"], "seconds": 12.0, "patients": {"by split": {"train": 10, "test": 5}},
    }  # fmt: skip
    return {"results": results(), "maps": maps, "shown": Shown(retrieval=[example]), "facts": facts}


def test_page_is_whole_and_alone(tmp_path):
    page, outline = render(tmp_path, **everything())
    assert "http" not in page
    assert "<script" not in page
    assert "url(http" not in page
    assert "@import" not in page
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in outline.addresses)
    assert len([address for address in outline.addresses if address.startswith("data:")]) == 2
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    for heading in (
        "Mean AUROC", "Paired differences in AUROC", "Calibration", "Mean average precision", "Retrieval",
        "Test embeddings, before and after", "Retrieval examples", "Cautions", "What the numbers rest on",
        "Zero-shot from prompts, without any label", "Cost of an arm, one seed",
    ):  # fmt: skip
        assert heading in outline.headings


def test_text_is_escaped(tmp_path):
    page, outline = render(tmp_path, **everything())
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "Left <b>effusion</b> & more" in outline.text
    assert "A <i>title</i>" in outline.text
    hostile = results("<img src=x> + <b>")
    hostile["summaries"] = [item | {"arm": item["arm"].replace("frozen", 'fro"<zen')} for item in hostile["summaries"]]
    page, outline = render(tmp_path, results=hostile)
    assert not any(address == "x" for address in outline.addresses)
    assert "<zen" not in page


def test_marked_unless_without_examples(tmp_path):
    page, _ = render(tmp_path, **everything())
    assert "contains data, do not share" in page
    page, outline = render(tmp_path, **everything(), no_examples=True)
    assert "do not share" not in page
    assert "effusion</b>" not in "".join(outline.text)
    assert "Retrieval examples" not in outline.headings


def test_numbers_and_marks_are_in_the_tables(tmp_path):
    page, outline = render(tmp_path, **everything())
    assert {"0.870", "[0.850, 0.890]", "+0.060", "▲"} <= set(outline.text)
    assert "[0.040, 0.080] p = 0.004" in outline.text
    assert "0123456789ab…" in page
    assert "0123456789abcdef" not in page
    assert "train 10, test 5" in page


@pytest.mark.parametrize("left_out", ["summaries", "comparisons", "retrieval", "zero_shot", "settings"])
def test_parts_may_miss(tmp_path, left_out):
    part = results()
    del part[left_out]
    _, outline = render(tmp_path, results=part)
    assert "Cautions" in outline.headings


def test_nothing_at_all_is_still_a_page(tmp_path):
    page, _ = render(tmp_path, results={})
    assert "No comparison with a baseline could be made." in page


def test_the_adaptor_stays_in_colour_where_another_arm_is_compared_with_it(tmp_path):
    part = results()
    part["comparisons"].append(gap("adaptor+lora", "adaptor", 1.0, 0.01))
    page, _ = render(tmp_path, results=part)
    (name,) = re.findall(r"<text[^>]*>adaptor</text>", page)
    assert "#0072b2" in name


def test_undefined_entries_carry_their_reason(tmp_path):
    part = results()
    part["summaries"] = [
        item
        if item["fraction"] == 1
        else item | {"value": None, "ci_low": None, "ci_high": None, "reason": "no positive"}
        for item in part["summaries"]
    ]
    page, outline = render(tmp_path, results=part)
    assert 'title="no positive"' in page
    assert "Some entries are not of the whole: no positive." in outline.text


def test_missing_yardsticks_and_few_seeds_are_said(tmp_path):
    part = results()
    part["summaries"] = [item | {"n_seeds": 1} for item in part["summaries"] if item["arm"] != "adaptor-untrained"]
    part["settings"] = {"allow_overlap": True}
    _, outline = render(tmp_path, results=part)
    text = "".join(outline.text)
    assert "The arm adaptor-untrained is missing" in text
    assert "Some numbers rest on 1 seed:" in text
    assert "Test patients that training has seen were allowed" in text


def test_several_encoders_draw_a_grid(tmp_path):
    page, outline = render(tmp_path, results=results("dino + bert", "lite0 + bert", "dino + minilm"))
    assert "Encoder pairs" in outline.headings
    assert "adaptor at 1\xa0% labels" in outline.headings
    assert {"dino", "lite0", "bert", "minilm"} <= set(outline.text)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    _, outline = render(tmp_path, results=results())
    assert "Encoder pairs" not in outline.headings


@pytest.mark.parametrize(
    ("difference", "words"),
    [
        (0.06, "the adaptor reaches 0.87 mean AUROC, +0.06 [0.04, 0.08] over the best baseline (frozen)."),
        (-0.06, "the adaptor reaches 0.87 mean AUROC, −0.06 [−0.08, −0.04] below the best baseline (frozen)."),
        (0.01, "not told apart from the best baseline (frozen; difference +0.01 [−0.01, 0.03])."),
    ],
)
def test_headline_says_what_was_found(difference, words):
    rows = [row("adaptor", 0.01, 0.87), row("frozen", 0.01, 0.81), row("adaptor-untrained", 0.01, 0.6)]
    gaps = [gap("adaptor", "adaptor-untrained", 0.01, 0.27), gap("adaptor", "frozen", 0.01, difference)]
    (line,) = headlines(rows, gaps)
    assert line.endswith(words)
    assert line.startswith("At 1\xa0% labels")


def test_without_an_adaptor_the_first_sentence_names_the_arm_and_no_adaptor_is_missed(tmp_path):
    rows = [row("frozen", 0.01, 0.6), row("lora-tuned", 0.01, 0.7)]
    gaps = [gap("lora-tuned", "frozen", 0.01, 0.1)]
    (line,) = headlines(rows, gaps)
    assert line.startswith("At 1\xa0% labels the arm lora-tuned reaches 0.70 mean AUROC, +0.10")
    page, outline = render(tmp_path, results={"summaries": rows, "comparisons": gaps})
    assert "The frozen probe is the honest yardstick" in page
    assert "adaptor" not in "".join(outline.text)


def test_maps_of_classes_and_of_labels(tmp_path):
    random = np.random.default_rng(0)
    places = project_2d(random.normal(size=(12, 4)).astype(np.float32))
    assert places.shape == (12, 2)
    maps = Maps(places, -places, random.integers(0, 3, 12), ("axial", "coronal", "sagittal"))
    _, outline = render(tmp_path, results={}, maps=maps)
    assert "Test embeddings, before and after" in outline.headings


def test_projection_is_repeatable_and_keeps_neighbours():
    random = np.random.default_rng(0)
    group = np.arange(60) % 3
    values = 8 * np.eye(3)[group] @ random.normal(size=(3, 16)) + random.normal(size=(60, 16))
    places = project_2d(values, seed=2)
    np.testing.assert_array_equal(places, project_2d(values, seed=2))
    distance = np.linalg.norm(places[:, None] - places, axis=-1) + 1e9 * np.eye(60)
    assert (group[distance.argmin(1)] == group).mean() > 0.9


def test_rows_of_a_map():
    assert sample_rows(5).tolist() == [0, 1, 2, 3, 4]
    picked = sample_rows(5000, seed=1)
    assert len(set(picked.tolist())) == 1000
    assert (picked == sample_rows(5000, seed=1)).all()


def test_several_classes_are_reported(tmp_path):
    part = results()
    metrics = {"auroc": "auroc", "average_precision": "balanced_accuracy", "ece": "ece"}
    for key in ("summaries", "comparisons"):
        part[key] = [r | {"label": "all", "metric": metrics[r["metric"]]} for r in part[key] if r["label"] == "macro"]
    page, outline = render(tmp_path, results=part)
    assert {"AUROC", "Balanced accuracy", "Expected calibration error"} <= set(outline.headings)
    assert "the adaptor reaches 0.87 AUROC, +0.06" in page


def test_curves_of_one_fraction_have_room_for_the_names():
    markup = learning_curves(
        [row("a", 1.0, 0.7), row("b", 1.0, 0.72)]
    )  # the suite turns a collapsed layout into an error
    assert ">a</text>" in markup
    assert ">b</text>" in markup


def test_curves_survive_undefined_points():
    markup = learning_curves([row("a", 0.1, None), row("a", 1.0, 0.7, ci_low=None, ci_high=None), row("b", 0.1, None)])
    assert markup.startswith("<svg viewBox=")
    assert ">a</text>" in markup
    assert ">b</text>" not in markup
