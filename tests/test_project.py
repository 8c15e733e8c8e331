"""Where things are, which device, and files that are there whole or not at all."""

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers import project
from helpers.project import data_dir, env_path, live_seconds, pick_device, set_seed, versions
from lab.provenance import git_revision, provenance, write_json
from surfaces.files import atomic_path


@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("DENOISE_DATA", str(tmp_path))
    return tmp_path


def test_data_is_beside_the_package(monkeypatch):
    monkeypatch.delenv("DENOISE_DATA", raising=False)
    assert data_dir() == Path(__file__).resolve().parent.parent / "data"


def test_data_is_where_the_environment_says(data):
    assert data_dir() == data


def test_missing_data_says_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("DENOISE_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"no data folder at .*nowhere.*pip install -e \."):
        data_dir()
    (tmp_path / "nowhere").write_text("a file is no folder")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        data_dir()


def test_missing_data_of_a_package_without_its_clone(tmp_path, monkeypatch):
    monkeypatch.delenv("DENOISE_DATA", raising=False)
    monkeypatch.setattr(project, "ROOT", tmp_path)
    with pytest.raises(FileNotFoundError, match="set DENOISE_DATA"):
        data_dir()


def test_relative_paths_are_taken_from_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOME_FOLDER", "photos/../cracks")
    assert env_path("SOME_FOLDER") == tmp_path.resolve() / "cracks"
    monkeypatch.setenv("SOME_FOLDER", "~/cracks")
    assert env_path("SOME_FOLDER") == Path.home().resolve() / "cracks"


@pytest.mark.parametrize("value", ["", "  "])
def test_empty_is_unset(monkeypatch, value):
    monkeypatch.setenv("SOME_FOLDER", value)
    assert env_path("SOME_FOLDER") is None
    assert env_path("NO_SUCH_VARIABLE_AT_ALL") is None


def test_device_is_the_best_there_is(monkeypatch):
    monkeypatch.delenv("DENOISE_DEVICE", raising=False)
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    assert pick_device().type == next(name for name, yes in there.items() if yes)


def test_device_can_be_chosen(monkeypatch):
    monkeypatch.setenv("DENOISE_DEVICE", " cpu ")
    assert pick_device() == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:77", "cpu:x"])
def test_device_that_is_not_there_is_named(monkeypatch, name):
    monkeypatch.setenv("DENOISE_DEVICE", name)
    with pytest.raises(ValueError, match=f"device of this machine .*got '{name}'"):
        pick_device()


def test_seconds_of_live_trainings(monkeypatch):
    monkeypatch.delenv("LIVE_SECONDS", raising=False)
    assert live_seconds() == 60 and live_seconds(5) == 5
    monkeypatch.setenv("LIVE_SECONDS", "2.5")
    assert live_seconds() == 2.5


@pytest.mark.parametrize("value", ["0", "-3", "nan", "inf", "a minute"])
def test_impossible_seconds_are_refused(monkeypatch, value):
    monkeypatch.setenv("LIVE_SECONDS", value)
    with pytest.raises(ValueError, match=f"LIVE_SECONDS must be a positive number of seconds, got '{value}'"):
        live_seconds()


def test_seed_fixes_all_three_generators():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    set_seed(3)
    first = draw()
    set_seed(3)
    assert draw() == first
    set_seed(4)
    assert all(a != b for a, b in zip(draw(), first, strict=True))


def test_versions_name_the_packages():
    assert versions("torch", "numpy").startswith("torch ")
    assert f"numpy {np.__version__}" in versions("torch", "numpy")


def test_file_is_there_whole_and_nothing_beside_it(tmp_path):
    with atomic_path(tmp_path / "deep" / "file.txt") as temporary:
        assert temporary.suffix == ".txt" and temporary.parent == tmp_path / "deep"
        temporary.write_text("new")
        assert not (tmp_path / "deep" / "file.txt").exists()
    assert [(path.name, path.read_text()) for path in (tmp_path / "deep").iterdir()] == [("file.txt", "new")]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_failure_leaves_the_old_file_alone(tmp_path, error):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(error), atomic_path(path) as temporary:
        temporary.write_text("half of the n")
        raise error
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file.txt", "old")]


def test_json_has_null_for_what_is_no_number(tmp_path):
    content = {"a": float("nan"), 2: np.float32("inf"), "c": [np.int64(3), (1.5, None)], "d": np.array([1, np.nan]),
               "e": np.bool_(True), "f": "σ"}
    write_json(tmp_path / "file.json", content)
    text = (tmp_path / "file.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"a": None, "2": None, "c": [3, [1.5, None]], "d": [1, None], "e": True, "f": "σ"}
    assert text.endswith("}\n") and "σ" in text


def test_content_that_is_no_json_leaves_no_file(tmp_path):
    with pytest.raises(TypeError):
        write_json(tmp_path / "file.json", {"a": object()})
    assert not list(tmp_path.iterdir())


plain = st.recursive(st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
                     | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)


@given(plain)
def test_plain_content_stays_as_it_is(content):
    assert json.loads(json.dumps(project.plain(content))) == json.loads(json.dumps(content))


def test_revision_is_short_or_unknown(monkeypatch, tmp_path):
    revision = git_revision()
    assert revision == "unknown" or set(revision.rstrip("+")) <= set("0123456789abcdef")
    monkeypatch.setattr("lab.provenance.ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_revision() == "unknown"
    monkeypatch.setenv("PATH", "")
    assert git_revision() == "unknown"


def test_origin_has_no_path_of_this_machine(monkeypatch):
    monkeypatch.setenv("DENOISE_DEVICE", "cpu")
    origin = provenance("make train", 3)
    assert list(origin) == ["command", "revision", "seed", "date", "machine"]
    assert origin["command"] == "make train" and origin["seed"] == 3
    assert str(project.ROOT) not in json.dumps(origin) and os.uname().nodename not in origin["machine"].split(", ")
