"""Second names of files: links where the file system has them, copies where it has none."""

import os
from pathlib import Path

import pytest

from adaptmed.files import link_whole, write_text_whole


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "last.txt"
    write_text_whole(path, "second")
    return path


def refuse(*_):
    raise OSError("this file system has no links")


@pytest.mark.parametrize("links", [True, False])
def test_a_second_name_keeps_what_the_first_held(source, links, monkeypatch):
    target = source.with_name("previous.txt")
    target.write_text("first")
    if not links:
        monkeypatch.setattr(Path, "hardlink_to", refuse)
    link_whole(source, target)
    assert target.samefile(source) == links
    write_text_whole(source, "third")
    assert (source.read_text(), target.read_text()) == ("third", "second")


def test_a_link_that_a_killed_process_left_is_replaced(source):
    target, left = source.with_name("previous.txt"), source.with_name(".part-previous.txt")
    os.link(source, left)
    link_whole(source, target)
    assert target.read_text() == "second"
    assert not left.exists()


def test_the_same_file_is_left_alone(source):
    target = source.with_name("previous.txt")
    os.link(source, target)
    link_whole(source, target)
    assert sorted(path.name for path in source.parent.iterdir()) == ["last.txt", "previous.txt"]
