"""Checkpoints: what is loaded is what was saved and what the card says, or it is refused by name."""

import ast
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers import checkpoints
from helpers.checkpoints import CheckpointError, build, checkpoint_names, checkpoint_path, load, read_card, save
from helpers.models import ConvDAE, CrackSegmenter, DenseDAE, UNet

SHIPPED = Path(__file__).resolve().parent.parent / "data" / "checkpoints"
CARD = {"architecture": "UNet", "arguments": {"width": 4, "stages": 2}, "seed": 7}


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("DENOISE_DATA", str(tmp_path))
    return tmp_path


@pytest.fixture
def model():
    torch.manual_seed(0)
    return UNet(width=4, stages=2)


@pytest.fixture
def saved(model):
    return save(model, "tiny", CARD)


def test_what_is_loaded_is_what_was_saved_in_half_precision(model, saved):
    loaded = load("tiny")
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value.half().float()), name
    noisy = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(loaded(noisy), model(noisy), rtol=0, atol=2e-3)


def test_loaded_is_float32_on_the_cpu_in_eval_mode(saved):
    loaded = load("tiny")
    assert {(value.dtype, value.device.type) for value in loaded.state_dict().values()} == {(torch.float32, "cpu")}
    assert isinstance(loaded, UNet) and not loaded.training


def test_half_the_bytes_on_disk(model, saved):
    assert {value.dtype for value in load_file(saved).values()} == {torch.float16}
    full = save(model, "full", CARD, half=False)
    assert {value.dtype for value in load_file(full).values()} == {torch.float32}
    assert all(torch.equal(value, load("full").state_dict()[name]) for name, value in model.state_dict().items())
    assert saved.stat().st_size < 0.7 * full.stat().st_size


def test_whole_numbers_are_not_halved(data):
    batch_norm = torch.nn.BatchNorm2d(3)
    path = save(batch_norm, "norm", CARD)
    assert load_file(path)["num_batches_tracked"].dtype == torch.int64


def test_card_says_what_it_was_told_and_vouches_for_the_file(saved):
    card = read_card("tiny")
    assert card == {**CARD, "name": "tiny", "sha256": checkpoints.sha256(saved)}
    assert re.fullmatch("[0-9a-f]{64}", card["sha256"])


def test_changed_weights_are_refused(saved):
    content = bytearray(saved.read_bytes())
    content[-1] ^= 1
    saved.write_bytes(content)
    with pytest.raises(CheckpointError, match="tiny.safetensors is not the file its card describes.*ONLY=tiny"):
        load("tiny")


@pytest.mark.parametrize("card", [None, "{", "[]", "3", '{"architecture": "UNet", "arguments": {}}'], ids=str)
def test_broken_card_is_refused(saved, card):
    path = saved.with_suffix(".json")
    if card is None:
        path.unlink()
    else:
        path.write_text(card)
    with pytest.raises(CheckpointError, match="'tiny' needs a card tiny.json"):
        load("tiny")


def change_card(saved, **changes):
    path = saved.with_suffix(".json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_truncated_safetensors_is_refused_even_where_the_card_agrees(saved):
    saved.write_bytes(saved.read_bytes()[:-10])
    change_card(saved, sha256=checkpoints.sha256(saved))
    with pytest.raises(CheckpointError, match="tiny.safetensors is not a readable safetensors file"):
        load("tiny")


@pytest.mark.parametrize("changes, message", [
    ({"architecture": "GAN"}, "no denoiser 'GAN'"),
    ({"architecture": "double_conv"}, "no denoiser 'double_conv'"),
    ({"architecture": "ConvDAE", "arguments": {}}, r"tiny.safetensors does not fit ConvDAE\(\{\}\)"),
    ({"arguments": {"width": 8, "stages": 2}}, "(?s)does not fit UNet.*size mismatch"),
    ({"arguments": {"depth": 8}}, "UNet does not take the arguments .*depth"),
], ids=str)
def test_another_architecture_is_refused(saved, changes, message):
    change_card(saved, **changes)
    with pytest.raises(CheckpointError, match=message):
        load("tiny")


def test_missing_checkpoint_lists_those_there_are(model, saved):
    save(model, "another", CARD)
    with pytest.raises(FileNotFoundError, match=r"no checkpoint 'unet' .*there: another, tiny\)"):
        load("unet")


def test_missing_checkpoint_in_an_empty_folder(data):
    with pytest.raises(FileNotFoundError, match="there: none"):
        load("unet")


def test_failure_while_writing_leaves_the_old_checkpoint(model, saved, monkeypatch):
    before = {path.name: path.read_bytes() for path in saved.parent.iterdir()}

    def full_disk(tensors, path, metadata=None):
        Path(path).write_bytes(b"half of it")
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        save(model, "tiny", CARD)
    assert {path.name: path.read_bytes() for path in saved.parent.iterdir()} == before
    load("tiny")


def test_what_a_killed_writer_left_is_no_checkpoint(saved):
    shutil.copy(saved, saved.with_name(".tiny.123.part.safetensors"))
    assert checkpoint_names() == ["tiny"]


def test_shipped_goes_before_an_experiment(model, data):
    experiment = save(model, "tiny", CARD, folder="runs")
    assert checkpoint_path("tiny") == experiment == data / "runs" / "tiny.safetensors"
    assert checkpoint_names() == []
    shipped = save(model, "tiny", CARD)
    assert checkpoint_path("tiny") == shipped == data / "checkpoints" / "tiny.safetensors"


def test_an_alias_is_a_second_name_and_no_second_file(saved):
    (saved.parent / "aliases.json").write_text('{"sharp": "tiny", "lost": "nowhere"}')
    assert checkpoint_names() == ["sharp", "tiny"] and checkpoint_path("sharp") == saved
    assert read_card("sharp")["name"] == "tiny"
    first, again = load("sharp").state_dict(), load("tiny").state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    with pytest.raises(CheckpointError, match="another name of 'nowhere'"):
        load("lost")


@pytest.mark.parametrize("kind, arguments", [
    (UNet, {"width": 4, "upsample": "bilinear"}), (ConvDAE, {"width": 4}), (DenseDAE, {"bottleneck": 2, "skip": True}),
    (CrackSegmenter, {"width": 4})], ids=lambda value: getattr(value, "__name__", ""))
def test_every_denoiser_makes_the_round(kind, arguments):
    model = kind(**arguments)
    save(model, "round", {"architecture": kind.__name__, "arguments": arguments}, half=False)
    loaded = load("round")
    assert type(loaded) is kind
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))


def test_shared_weights_are_written_apart(data):
    weight = torch.rand(3)
    checkpoints.save_tensors({"a": weight, "b": weight, "c": weight[1:]}, data / "shared.safetensors")
    assert torch.equal(checkpoints.read_tensors(data / "shared.safetensors")["c"], weight[1:])


def test_build_makes_the_network_untrained():
    assert isinstance(build("ConvDAE", {"width": 4, "predict": "noise"}), ConvDAE)


def test_nothing_unpickles():
    forbidden = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve"}
    for path in Path(checkpoints.__file__).parent.glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                assert not forbidden & {name.name.split(".")[0] for name in node.names}, path.name
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] not in forbidden, path.name
            if isinstance(node, ast.Call):
                call = ast.unparse(node.func)
                assert call not in ("torch.load", "torch.hub.load"), path.name
                keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert keywords.get("allow_pickle", "False") == "False", path.name


SHIPPED_NAMES = sorted(path.stem for path in SHIPPED.glob("[!.]*.safetensors"))


@pytest.mark.skipif(not SHIPPED_NAMES, reason="no trained denoisers yet")
def test_shipped_checkpoints_load_and_say_where_they_come_from(monkeypatch):
    monkeypatch.delenv("DENOISE_DATA")
    for name in SHIPPED_NAMES:
        model, card = load(name), read_card(name)
        side = getattr(model, "size", 224)
        with torch.no_grad():
            assert torch.isfinite(model(torch.full((1, 3, side, side), 0.5))).all(), name
        assert {"data", "seed", "revision", "metrics", "recipe"} <= set(card), name
        assert card["recipe"]["architecture"] == card["architecture"]
