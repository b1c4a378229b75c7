import csv
import hashlib
import json
import re
import sys
from itertools import count

import numpy as np
import pytest
from PIL import Image

from adaptmed.data.phantom import FINDINGS, write_phantom
from adaptmed.data.phantom.anatomy import draw_anatomy
from adaptmed.data.phantom.findings import PREVALENCE, Finding, draw_findings
from adaptmed.data.phantom.pictures import draw_study
from adaptmed.data.phantom.reports import write_questions, write_report
from adaptmed.errors import InputError

WORDS = {
    "effusion": r"effusion|fluid|costophrenic",
    "pneumothorax": r"pneumothorax|pleural air",
    "consolidation": r"consolidation|airspace|\bopacity",
    "nodule": r"nod(ule|ular)",
    "cardiomegaly": r"cardiomegaly|heart|cardiac|cardiothoracic",
}
DENIAL = r"\b(no|without|free of|unremarkable|sharp|normal|not|absent)\b"
GLOBAL = r"^(unremarkable study|normal heart and lungs|no abnormality)"
GRADES = {
    "small": r"small|tiny|minor|subtle|mild|slight|borderline",
    "moderate": r"moderate|medium-sized|mid-sized|definite",
    "large": r"large|big|marked|pronounced|severe",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantom")
    write_phantom(folder, studies=60, seed=5, image_size_px=96)
    return folder


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def digests(folder):
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def read_back(text):
    """What a reader takes from a report, by keyword and negation; knows nothing of how it was written."""
    stated, denied = set(), set()
    for sentence in re.split(r"(?<=\.)\s+", text.lower()):
        if re.search(GLOBAL, sentence):
            denied |= set(FINDINGS)
            continue
        named = {name for name, words in WORDS.items() if re.search(words, sentence)}
        (denied if re.search(DENIAL, sentence) else stated).update(named)
    return stated, denied


def draws(number_of_studies, seed=0):
    """Findings and generators of many made-up studies."""
    for number in range(number_of_studies):
        rng = np.random.default_rng([seed, number])
        yield draw_findings(rng, 1)[0], rng


def test_manifest_has_the_columns_and_files_it_names(folder):
    manifest = rows(folder / "manifest.csv")
    assert list(manifest[0]) == ["image", "text", "patient", "split", "mask", *FINDINGS]
    assert len(manifest) == len({row["image"] for row in manifest}) == 60
    for row in manifest:
        with Image.open(folder / row["image"]) as image, Image.open(folder / row["mask"]) as mask:
            assert (image.mode, image.size, mask.mode, mask.size) == ("L", (96, 96), "L", (96, 96))
            values = set(np.unique(np.asarray(mask))) - {0}
        assert values == {1 + k for k, name in enumerate(FINDINGS) if row[name] == "1"}
    assert not list(folder.rglob("*.part"))


def test_patients_stand_in_one_split_and_have_one_to_three_studies(folder):
    split, studies = {}, {}
    for row in rows(folder / "manifest.csv"):
        assert split.setdefault(row["patient"], row["split"]) == row["split"]
        studies[row["patient"]] = studies.get(row["patient"], 0) + 1
    assert set(studies.values()) == {1, 2, 3}
    counts = [
        sum(row["split"] == name for row in rows(folder / "manifest.csv")) for name in ("train", "validate", "test")
    ]
    assert counts == [42, 6, 12]


def test_splits_have_exactly_the_asked_counts(tmp_path):
    manifest = rows(write_phantom(tmp_path, image_size_px=64, splits={"test": 5, "train": 7}))
    assert [row["split"] for row in manifest] == ["train"] * 7 + ["test"] * 5
    assert not {row["patient"] for row in manifest[:7]} & {row["patient"] for row in manifest[7:]}


def test_same_parameters_give_the_same_bytes_even_after_a_stop(folder, tmp_path):
    def stop(done, total):
        if done > total // 3:
            raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        write_phantom(tmp_path, studies=60, seed=5, image_size_px=96, progress=stop)
    assert not (tmp_path / "manifest.csv").exists()
    kept = sorted((tmp_path / "images").iterdir())[0]
    touched = kept.stat().st_mtime_ns
    seen = []
    write_phantom(tmp_path, studies=60, seed=5, image_size_px=96, progress=lambda *now: seen.append(now))
    assert kept.stat().st_mtime_ns == touched
    assert seen[-1] == (60, 60)
    assert digests(tmp_path) == digests(folder)


def test_another_seed_gives_other_pictures_and_words(folder, tmp_path):
    write_phantom(tmp_path, studies=3, seed=6, image_size_px=96)
    assert not set(digests(tmp_path / "images").values()) & set(digests(folder / "images").values())


def test_a_whole_phantom_is_left_as_it_is(folder):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert write_phantom(folder, studies=60, seed=5, image_size_px=96) == folder / "manifest.csv"
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_foreign_folder_is_refused(folder, tmp_path):
    with pytest.raises(InputError, match=r"expected a phantom of .*'seed': 9.*, but got one of .*'seed': 5"):
        write_phantom(folder, studies=60, seed=9, image_size_px=96)
    (tmp_path / "manifest.csv").write_text("image,text\n")
    with pytest.raises(InputError, match=r"another manifest\.csv"):
        write_phantom(tmp_path, studies=4)
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.csv"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"studies": 0}, "`studies`"),
        ({"seed": -1}, "`seed`"),
        ({"image_size_px": 32}, "`image_size_px`"),
        ({"splits": {"dev": 3}}, "`splits`"),
        ({"splits": {"train": -1}}, "`splits`"),
        ({"splits": {}}, "`splits`"),
    ],
)
def test_bad_parameters_are_refused_before_anything_is_written(tmp_path, arguments, named):
    with pytest.raises(InputError, match=named):
        write_phantom(tmp_path / "new", **arguments)
    assert not (tmp_path / "new").exists()


def test_reports_say_what_the_labels_and_the_record_say(folder):
    truth = [json.loads(line) for line in (folder / "findings.jsonl").read_text().splitlines()]
    for row, record in zip(rows(folder / "manifest.csv"), truth, strict=True):
        assert record["image"] == row["image"]
        assert read_back(row["text"]) == (set(record["stated"]), set(record["denied"]))
        assert {name for name in FINDINGS if row[name] == "1"} == {found["name"] for found in record["findings"]}


def test_every_wording_reads_back_as_it_was_meant():
    texts = set()
    for findings, rng in draws(1500):
        report = write_report(findings, rng)
        assert read_back(report.text) == (set(report.stated), set(report.denied))
        assert set(report.stated) == set(findings)
        assert not set(report.denied) & set(findings)
        assert 1 <= len(re.findall(r"\.(?:\s|$)", report.text)) <= 6
        assert "{" not in report.text
        texts.add(report.text)
    assert len(texts) > 1200


@pytest.mark.parametrize("name", FINDINGS)
def test_a_finding_is_worded_in_many_ways_and_truly(name):
    said, denied = set(), set()
    for number in range(400):
        rng = np.random.default_rng(number)
        found = draw_named(name, rng)
        text = write_report({name: found}, rng).text
        sentence = next(s for s in re.split(r"(?<=\.)\s", text.lower()) if re.search(WORDS[name], s))
        shape = re.sub(
            "|".join(GRADES.values()) + r"|\d+|left|right|bilateral|both sides|upper|mid|lower", "_", sentence
        )
        said.add(shape)
        assert not {"left", "right"} - {found.side} & set(sentence.split())
        assert re.search(GRADES[found.grade], sentence) or f"{found.diameter_mm} mm" in sentence
        assert name not in ("consolidation", "nodule") or found.zone in sentence
        text = write_report({}, rng).text.lower()
        denied |= {s for s in re.split(r"(?<=\.)\s", text) if re.search(WORDS[name], s) and " or " not in s}
    assert len(said) >= 6
    assert len(denied) >= 4


def draw_named(name, rng):
    drawn = (draw_findings(rng, 1)[0] for _ in count())
    return next(findings[name] for findings in drawn if name in findings)


def test_questions_are_answered_by_the_findings():
    answers = {"yes": 0, "no": 0}
    for findings, rng in draws(400):
        for question, answer in write_questions(findings, rng):
            (name,) = (name for name, words in WORDS.items() if re.search(words, question.lower()))
            if answer in answers:
                answers[answer] += 1
                assert (answer == "yes") == (name in findings)
            elif "side" in question:
                assert answer == findings[name].side
            elif "zone" in question:
                assert answer == findings[name].zone
            else:
                assert answer == findings[name].grade
    assert 0.7 < answers["yes"] / answers["no"] < 1.4


def test_questions_table_belongs_to_the_manifest(folder):
    manifest = {row["image"]: row for row in rows(folder / "manifest.csv")}
    questions = rows(folder / "questions.csv")
    assert list(questions[0]) == ["image", "question", "answer", "patient", "split"]
    assert {row["image"] for row in questions} == set(manifest)
    for row in questions:
        assert (row["patient"], row["split"]) == (manifest[row["image"]]["patient"], manifest[row["image"]]["split"])


def test_prevalences_and_likeness_between_studies_of_a_patient():
    drawn = [draw_findings(np.random.default_rng([1, number]), 2) for number in range(3000)]
    present = np.array([[[name in study for name in FINDINGS] for study in patient] for patient in drawn], dtype=float)
    expected = [PREVALENCE[name] for name in FINDINGS]
    np.testing.assert_allclose(present.mean(axis=(0, 1)), expected, atol=0.025)
    assert all(0.15 <= share <= 0.35 for share in expected)
    for k in range(len(FINDINGS)):
        assert np.corrcoef(present[:, 0, k], present[:, 1, k])[0, 1] > 0.15


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["effusion", "pneumothorax", "consolidation", "nodule"])
def test_a_finding_lies_on_its_side(name, side):
    for number in range(6):
        rng = np.random.default_rng(number)
        found = Finding(name, side, "mid", across=0.4)
        _, mask = draw_study(draw_anatomy(rng), {name: found}, rng=rng, image_size_px=128)
        columns = np.nonzero(mask)[1]
        assert columns.size
        assert (columns.mean() > 64) == (side == "left")


def test_zones_lie_above_each_other():
    heights = {}
    for zone, down in (("upper", 0.25), ("mid", 0.48), ("lower", 0.71)):
        rng = np.random.default_rng(2)
        found = Finding("nodule", "right", zone, down=down)
        _, mask = draw_study(draw_anatomy(rng), {"nodule": found}, rng=rng, image_size_px=128)
        heights[zone] = np.nonzero(mask)[0].mean()
    assert heights["upper"] < heights["mid"] < heights["lower"]


@pytest.mark.parametrize("name", FINDINGS)
def test_severity_grows_the_mask_and_changes_the_picture_only_there(name):
    pictures, sizes = [], []
    for severity in (0.0, 0.5, 1.0):
        rng = np.random.default_rng(4)
        found = Finding(name, "" if name == "cardiomegaly" else "left", "mid", severity=severity, down=0.5)
        picture, mask = draw_study(draw_anatomy(rng), {name: found}, rng=rng, image_size_px=128)
        pictures.append(picture.astype(int))
        sizes.append((mask == 1 + FINDINGS.index(name)).sum())
    assert 0 < sizes[0] < sizes[1] < sizes[2]
    changed = np.abs(pictures[2] - pictures[0])
    assert changed[mask > 0].mean() > 2 * changed[mask == 0].mean()


def test_a_nodule_is_as_wide_as_the_report_says():
    rng = np.random.default_rng(0)
    found = Finding("nodule", "left", "mid", severity=1.0)
    _, mask = draw_study(draw_anatomy(rng), {"nodule": found}, rng=rng, image_size_px=512)
    diameter_mm = 2 * np.sqrt((mask > 0).sum() / np.pi) * 400 / 512
    assert diameter_mm == pytest.approx(found.diameter_mm, rel=0.2)


def test_the_command_writes_a_phantom(tmp_path, capsys):
    from adaptmed.cli.phantom import phantom

    phantom(tmp_path, studies=3, image_size_px=64)
    assert len(rows(tmp_path / "manifest.csv")) == 3
    assert f"adaptmed check {tmp_path / 'manifest.csv'}" in capsys.readouterr().out


def test_it_says_that_it_is_no_medical_data():
    assert "no medical data" in sys.modules["adaptmed.data.phantom"].__doc__
    words = set()
    for number in range(5):
        rng = np.random.default_rng(number)
        picture, _ = draw_study(draw_anatomy(rng), {}, rng=rng, image_size_px=256)
        words.add((picture[245:254, 5:49] > 170).tobytes())
    (word,) = words  # the same letters in the corner of every picture, however dark or bright it is
    assert 20 < sum(word) < 100
