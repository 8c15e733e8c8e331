"""The recipes: each can be built, refers to one that is there, and is trained or loaded by its name."""

import dataclasses
import json
import os
import re
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from helpers.checkpoints import CheckpointError, build, checkpoint_names, load, read_card, save
from helpers.data import open_dataset
from lab import recipes
from lab import train as training
from lab.recipes import RECIPES, Recipe
from lab.report_losses import SHIPPED
from lab.train import load_or_train, train, training_data

TINY = Recipe("UNet", {"width": 2, "stages": 1}, data="drawn", steps=2, batch_size=2, crop=16)


@pytest.fixture(scope="module")
def sheets(tmp_path_factory):
    """A data folder whose drawn sheets are made once for all tests."""
    return tmp_path_factory.mktemp("sheets")


@pytest.fixture
def data(tmp_path, sheets, monkeypatch):
    """A small data folder, small data and one tiny recipe."""
    (tmp_path / "cache").symlink_to(sheets)
    monkeypatch.setenv("DENOISE_DATA", str(tmp_path))
    monkeypatch.setenv("DENOISE_DEVICE", "cpu")
    monkeypatch.delenv("CRACK_PHOTOS", raising=False)
    monkeypatch.setattr(training, "SHEETS", 2)
    monkeypatch.setattr(training, "open_dataset", lambda *words, **options: open_dataset(
        *words, **{**options, "length": 1}))
    monkeypatch.setitem(RECIPES, "tiny", TINY)
    return tmp_path


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_can_be_built_and_takes_its_crops(name):
    recipe = RECIPES[name]
    with torch.no_grad():
        output = build(recipe.architecture, recipe.arguments)(torch.zeros(1, 3, recipe.crop, recipe.crop))
    assert output.shape == (1, 1 if recipe.objective == "segment" else 3, recipe.crop, recipe.crop)
    assert recipe.data in ("drawn", "photos", "both") and recipe.objective in ("denoise", "segment")
    assert min(recipe.steps, recipe.batch_size) >= 1 and 0 < recipe.lr < 1
    assert json.loads(json.dumps(dataclasses.asdict(recipe)))["architecture"] == recipe.architecture


def test_starts_are_recipes_of_the_same_network():
    for recipe in RECIPES.values():
        if recipe.start:
            start = RECIPES[recipe.start]
            if recipe.architecture == "HybridViTUNet":  # it takes the weights of a U-Net
                assert start.arguments["width"] == recipe.arguments["width"]
                assert start.architecture in ("UNet", "HybridViTUNet")
            elif recipe.architecture == "HybridResUNet":
                own = recipe.arguments
                assert start.architecture == "ResUNet"
                assert start.arguments == {"widths": own["widths"], "blocks": own["residual_blocks"]}
            else:
                assert (start.architecture, start.arguments) == (recipe.architecture, recipe.arguments)
            assert list(RECIPES).index(recipe.start) < list(RECIPES.values()).index(recipe)


def test_shipped_denoisers_are_blind_and_hold_what_the_project_promises():
    shipped = {name for name, recipe in RECIPES.items() if recipe.shipped}
    assert {"dense", "conv", "unet_start", "unet_classic", "unet", "hybrid", "segmenter"} <= shipped
    for name in shipped - {"segmenter"}:
        assert RECIPES[name].sigma == ((0, 80) if name in ("unet", "hybrid") else (5, 60)), name
    assert RECIPES["unet_classic"].arguments["width"] == 32 and RECIPES["unet_classic"].data == "both"
    assert RECIPES["segmenter"].objective == "segment" and RECIPES["segmenter"].sigma == 0
    assert RECIPES["dense"].crop == RECIPES["dense_skip"].crop == 56


def test_the_two_of_the_drawn_surfaces_differ_in_their_data_alone():
    photos, drawn = RECIPES["unet_photos_only"], RECIPES["unet_drawn_only"]
    assert dataclasses.replace(photos, data="drawn") == drawn and photos.data == "photos"


def test_checkpoints_that_are_there_have_a_recipe():
    retrained = [name for name in checkpoint_names() if "run" in read_card(name)]
    assert set(retrained) <= set(SHIPPED)  # lab/retrain.py trained them, its plan is their recipe
    for name in set(checkpoint_names()) - set(retrained):
        assert name in RECIPES and RECIPES[name].shipped
        assert read_card(name)["arguments"] == RECIPES[name].arguments
        assert read_card(name)["recipe"]["start"] == RECIPES[name].start


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_recipes_optimizer_is_the_runs(data, monkeypatch, optimizer):
    wider = {"width": 4, "stages": 1}
    monkeypatch.setitem(RECIPES, "tiny", dataclasses.replace(TINY, arguments=wider, optimizer=optimizer))
    load_or_train("tiny")
    with safe_open(data / "runs" / "tiny" / "state.safetensors", "pt") as file:
        assert json.loads(file.metadata()["identity"])["optimizer"] == optimizer
        moments = {key.split(".")[-1] for key in file.keys() if key.startswith("optimizer.")}
    assert ("momentum_buffer" in moments) == (optimizer == "muon")


def test_trains_when_there_is_none_and_loads_when_there_is(data, capsys, monkeypatch):
    trained = load_or_train("tiny")
    assert "tiny: {" in capsys.readouterr().out
    card = read_card("tiny")
    assert card["architecture"] == "UNet" and card["recipe"]["steps"] == 2 and card["seed"] == 0
    assert card["data"] == "drawn 100 %" and card["command"] == "make train ONLY=tiny"
    assert card["metrics"]["valid"] == card["history"][-1] and card["history"][-1]["step"] == 2
    assert card["history"][-1]["psnr"] > 5
    assert sorted(path.name for path in (data / "runs" / "tiny").iterdir()) == ["best.safetensors", "state.safetensors"]

    monkeypatch.setattr(training, "train", lambda name: pytest.fail("trained again"))
    again = load_or_train("tiny")
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), again.parameters(), strict=True))
    assert not again.training


def files_of(data):
    return {path: path.read_bytes() for place in ("checkpoints", "runs") for path in (data / place).rglob("*.*")}


def test_finished_run_trains_nothing_and_leaves_its_card(data, monkeypatch, capsys):
    card, before = train("tiny", progress=False), files_of(data)
    monkeypatch.setattr(training, "fit", lambda *words, **options: pytest.fail("trained again"))
    monkeypatch.setattr(training, "provenance", lambda *words: {"date": "another day"})
    assert train("tiny", progress=False) == card == read_card("tiny")
    assert files_of(data) == before
    assert "tiny: complete, nothing to train; remove" in capsys.readouterr().out


@pytest.mark.parametrize("finished", [True, False])
def test_run_on_other_photographs_is_refused(data, photographs, monkeypatch, finished):
    """The same recipe with another folder: neither is its card rewritten, nor are both mixed."""
    monkeypatch.setitem(RECIPES, "tiny", dataclasses.replace(TINY, data="photos", steps=4))
    if finished:
        train("tiny", progress=False)
    else:
        with monkeypatch.context() as patch:
            stop_after(patch, 2)
            with pytest.raises(KeyboardInterrupt):
                train("tiny", progress=False)
    before = files_of(data)
    assert any(path.name == "state.safetensors" for path in before)
    monkeypatch.setenv("CRACK_PHOTOS", str(folder_of_photographs(data / "others", seed=1)))
    with pytest.raises(CheckpointError, match="tiny holds another run, with fingerprint .*wanted"):
        train("tiny", progress=False)
    assert files_of(data) == before
    monkeypatch.setenv("CRACK_PHOTOS", str(photographs))
    train("tiny", progress=False)  # and with the first folder it goes on, or has nothing to do
    assert read_card("tiny")["history"][-1]["step"] == 4


def stop_after(monkeypatch, steps):
    """Let trainings keep their state after every step, and press Ctrl-C after so many."""
    class Stopping(training.AcceleratedRun):
        def keep(self, step, history):
            super().keep(step, history)
            if step == steps:
                raise KeyboardInterrupt
    monkeypatch.setattr(training, "AcceleratedRun", Stopping)
    monkeypatch.setattr(training, "fit", lambda *words, real=training.fit, **options: real(
        *words, **{**options, "every": 1}))


@pytest.mark.parametrize("change", ["one photograph edited", "one photograph more", "another recipe", "another start"])
def test_siblings_of_another_folder_are_refused(data, photographs, monkeypatch, change):
    recipe = dataclasses.replace(TINY, data="photos", start="begin")
    monkeypatch.setitem(RECIPES, "tiny", recipe)
    monkeypatch.setitem(RECIPES, "begin", TINY)
    save(build("UNet", TINY.arguments), "begin", {})
    train("tiny", progress=False)
    before = read_card("tiny")
    if change == "one photograph edited":  # in a place that hardly a crop sees
        path = next(photo for photo in training_data(recipe).files)
        pixels = np.asarray(Image.open(path)).copy()
        pixels[0, 0] ^= 1
        Image.fromarray(pixels).save(path)
    elif change == "one photograph more":
        Image.fromarray(np.full((224, 224, 3), 99, np.uint8)).save(photographs / "photo98.png")
        Image.fromarray(np.full((224, 224, 3), 98, np.uint8)).save(photographs / "photo99.png")
    elif change == "another recipe":
        monkeypatch.setitem(RECIPES, "tiny", dataclasses.replace(recipe, colour=0.5))
    else:
        save(build("UNet", TINY.arguments), "begin", {})  # other random weights
    with pytest.raises(CheckpointError, match="tiny holds another run, with "):
        train("tiny", progress=False)
    assert read_card("tiny") == before


def test_a_checkpoint_that_was_not_yet_written_is_written_from_the_state(data, monkeypatch):
    """Killed between the last state and the checkpoint, with an older checkpoint of that name in place."""
    save(build("UNet", TINY.arguments), "tiny", {"data": "an older one"})
    with monkeypatch.context() as patch:
        patch.setattr(training.checkpoints, "save", lambda *words, **options: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train("tiny", progress=False)
    assert read_card("tiny")["data"] == "an older one"
    train("tiny", progress=False)
    assert read_card("tiny")["data"] == "drawn 100 %" and read_card("tiny")["history"][-1]["step"] == 2


def test_a_checkpoint_that_was_spoilt_is_written_again_from_the_complete_run(data, monkeypatch):
    train("tiny", progress=False)
    path = data / "checkpoints" / "tiny.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="sha256 differs.*make train ONLY=tiny"):
        load("tiny")
    train("tiny", progress=False)
    assert len(path.read_bytes()) == len(whole) and path.read_bytes()[-1000:] == whole[-1000:]  # the weights, as before
    load("tiny")


def test_the_command_says_in_a_sentence_what_it_refuses(data, photographs, monkeypatch):
    monkeypatch.setitem(RECIPES, "tiny", dataclasses.replace(TINY, data="photos"))
    monkeypatch.setattr(sys, "argv", ["lab.train", "--only", "tiny"])
    training.main()
    monkeypatch.setenv("CRACK_PHOTOS", str(folder_of_photographs(data / "others", seed=1)))
    with pytest.raises(SystemExit, match="^tiny: .*tiny holds another run, with fingerprint of the data .*remove it$"):
        training.main()


DRIVER = """
from helpers.data import open_dataset
from lab import train
from lab.recipes import RECIPES, Recipe
RECIPES["tiny"] = Recipe("UNet", {"width": 4, "stages": 1}, data="drawn", steps=6, batch_size=4, crop=16, lr=3e-3)
train.SHEETS = 2
train.open_dataset = lambda *words, **options: open_dataset(*words, **{**options, "length": 1})
train.main()
"""


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo")
def test_two_torchrun_processes_write_what_one_writes(data, tmp_path):
    """The command line's own path, under torchrun: one checkpoint, by one process, and again nothing to train."""
    (tmp_path / "driver.py").write_text(DRIVER)
    found = []
    for processes in (2, 1):
        place = tmp_path / f"data{processes}"
        place.mkdir()
        (place / "cache").symlink_to(data / "cache")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1",
                       "DENOISE_DATA": str(place), "DENOISE_DEVICE": "cpu"}
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={processes}",
                   f"--master_port={port}", str(tmp_path / "driver.py"), "--only", "tiny"]
        for words in ("'step': 6", "complete, nothing to train"):
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
            assert done.returncode == 0, done.stderr
            assert words in done.stdout
        assert sorted(path.name for path in (place / "checkpoints").iterdir()) == ["tiny.safetensors"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DENOISE_DATA", str(place))
            found.append((load("tiny").state_dict(), read_card("tiny")["history"]))
    for name, value in found[0][0].items():  # stored in half precision, a last bit of which may differ
        torch.testing.assert_close(found[1][0][name], value, rtol=1e-3, atol=1e-4)
    assert found[0][1][-1]["psnr"] == pytest.approx(found[1][1][-1]["psnr"], abs=1e-3)


def test_same_recipe_twice_gives_the_same_weights(data):
    results = []
    for _ in range(2):
        torch.manual_seed(0)  # as in a fresh process
        train("tiny", progress=False)
        results.append(load("tiny").state_dict())
        (data / "checkpoints" / "tiny.safetensors").unlink()
        (data / "runs" / "tiny" / "state.safetensors").unlink()
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_experiment_is_kept_apart_and_found(data, monkeypatch):
    monkeypatch.setitem(RECIPES, "tiny", dataclasses.replace(TINY, shipped=False))
    train("tiny", progress=False)
    assert (data / "runs" / "tiny.safetensors").is_file() and checkpoint_names() == []
    monkeypatch.setattr(training, "train", lambda name: pytest.fail("trained again"))
    load_or_train("tiny")


def test_start_is_loaded_or_trained_first(data, monkeypatch):
    monkeypatch.setitem(RECIPES, "later", dataclasses.replace(TINY, start="tiny", lr=0.0))
    train("later", progress=False)
    start, later = load("tiny"), load("later")
    for a, b in zip(start.parameters(), later.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-3)  # a rate of zero: nothing but half precision between them


def test_segmenter_is_scored_by_average_precision(data, monkeypatch):
    recipe = Recipe("CrackSegmenter", {"width": 2, "stages": 1}, data="drawn", steps=2, batch_size=2, crop=32, sigma=0,
                    objective="segment")
    monkeypatch.setitem(RECIPES, "tiny", recipe)
    card = train("tiny", progress=False)
    assert 0 <= card["history"][-1]["score"] <= 1
    assert load("tiny").head.out_channels == 1


def test_unknown_name_lists_checkpoints_and_recipes(data):
    save(build("UNet", {"width": 2}), "kept", {})
    with pytest.raises(KeyError, match="no denoiser 'nobody': checkpoints kept; recipes .*unet.*tiny"):
        load_or_train("nobody")


def test_checkpoint_without_a_recipe_is_loaded(data):
    save(build("UNet", {"width": 2}), "kept", {})
    assert load_or_train("kept").head.in_channels == 2


def test_photographs_are_asked_for(data):
    with pytest.raises(ValueError, match="set CRACK_PHOTOS"):
        training_data(dataclasses.replace(TINY, data="photos"))


def test_training_without_photographs_mixes_drawn_and_everyday_pictures(data):
    crops, valid, text, files = training_data(dataclasses.replace(TINY, data="both"))
    assert len(crops) == 4 and crops[0].clean.shape == (3, 16, 16)
    assert text == "drawn 87 %, everyday 13 %"
    assert len(valid) == 1 and files == []


def folder_of_photographs(folder, seed=0):
    """Write a plain folder of photographs, one source."""
    folder.mkdir()
    for number in range(24):
        pixels = np.random.default_rng([seed, number]).integers(0, 256, (224, 224, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"photo{number:02d}.png")
    return folder


@pytest.fixture
def photographs(tmp_path, monkeypatch):
    folder = folder_of_photographs(tmp_path / "photographs")
    monkeypatch.setenv("CRACK_PHOTOS", str(folder))
    return folder


@pytest.mark.parametrize("kind, text, pictures", [("both", "drawn 25 %, .* 60 %, everyday 15 %", 2),
                                                  ("photos", "[^,]* 100 %", 1), ("drawn", "drawn 100 %", 1)])
def test_photographs_are_mixed_in_where_there_are_some(data, photographs, kind, text, pictures):
    _, valid, said, files = training_data(dataclasses.replace(TINY, data=kind))
    assert re.fullmatch(text, said)
    assert len(valid) == pictures
    assert len(files) == (0 if kind == "drawn" else 14) and all(path.suffix == ".png" for path in files)


def test_without_photographs_a_start_on_photographs_is_passed_over():
    assert recipes.start_of(RECIPES["unet_blind"], photos="folder") == "unet_photos_only"
    assert recipes.start_of(RECIPES["unet_blind"], photos=None) is None
    assert recipes.start_of(RECIPES["unet_classic"], photos=None) == "unet_start"
    assert recipes.start_of(RECIPES["unet_start"], photos=None) == "unet_colour"
    assert recipes.start_of(RECIPES["unet_colour"], photos=None) == "unet_blind"
