"""Checkpoints: what is loaded is what was saved and what the card says, or it is refused by name."""

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers import checkpoints
from helpers.checkpoints import (
    CheckpointError,
    build,
    checkpoint_names,
    checkpoint_path,
    load,
    read_card,
    read_tensors,
    save,
    save_tensors,
    tensors_sha256,
)
from helpers.models import ConvDAE, DenseDAE, HybridViTUNet, UNet
from lab import cards
from lab.judges import CrackSegmenter

SHIPPED = Path(__file__).resolve().parent.parent / "data" / "checkpoints"
CARD = {"seed": 7, "data": "walls"}


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


def test_whole_numbers_are_not_halved(model):
    model.register_buffer("seen", torch.tensor(3))
    assert load_file(save(model, "norm", CARD))["seen"].dtype == torch.int64


def test_card_says_what_it_was_told_what_the_model_is_and_vouches_for_the_weights(saved):
    card = read_card("tiny")
    assert card == {**CARD, "architecture": "UNet", "arguments": {"width": 4, "stages": 2}, "name": "tiny",
                    "sha256": tensors_sha256(load_file(saved))}
    assert re.fullmatch("[0-9a-f]{64}", card["sha256"])
    assert [path.name for path in saved.parent.iterdir()] == ["tiny.safetensors"]  # one file, one truth
    if os.name == "posix":
        umask = os.umask(0)
        os.umask(umask)
        assert saved.stat().st_mode & 0o777 == 0o666 & ~umask  # others may read it


def test_changed_weights_are_refused(saved):
    content = bytearray(saved.read_bytes())
    content[-1] ^= 1
    saved.write_bytes(content)
    with pytest.raises(CheckpointError, match="tiny.safetensors does not hold the weights .*sha256 differs.*ONLY=tiny"):
        load("tiny")


def test_the_sha256_is_of_names_types_shapes_and_every_bit():
    tensors = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor(1), "c": torch.ones(2, dtype=torch.bfloat16)}
    same = tensors_sha256(tensors)
    assert tensors_sha256(dict(sorted(tensors.items()))) == same  # whatever the order
    flipped = tensors["b"].clone()
    flipped.view(torch.int32)[1, 2] ^= 1
    others = [{**tensors, "b": flipped}, {**tensors, "b": tensors["b"].reshape(3, 2)},
              {**tensors, "b": tensors["b"].view(torch.int32)}, {"d" if k == "b" else k: v for k, v in tensors.items()},
              {k: v for k, v in tensors.items() if k != "a"}]
    assert len({same, *map(tensors_sha256, others)}) == 6


def write_card(saved, card):
    """Put another card (a text; None: none) into the file, its tensors left as they are."""
    save_tensors(read_tensors(saved)[0], saved, None if card is None else {"card": card})


def change_card(saved, **changes):
    write_card(saved, json.dumps({**read_card(saved.stem), **changes}))


@pytest.mark.parametrize("card, message", [
    (None, "needs a card, JSON under the key 'card' of its metadata: KeyError"),
    ("{", "needs a card, JSON under the key 'card'"), ("[" * 100_000, "needs a card, .*: RecursionError"),
    ("[]", r"needs a card, a JSON object, got \[\]"), ("3", "needs a card, a JSON object, got 3"),
    ("{}", "the card's field 'architecture' must be the name of a class in helpers.models, got None"),
    ('{"architecture": "UNet", "arguments": {}}', "the card's field 'sha256' must be 64 hexadecimal digits, got None"),
], ids=lambda value: str(value)[:20])
def test_broken_card_is_refused(saved, card, message):
    write_card(saved, card)
    for call in (load, read_card):
        with pytest.raises(CheckpointError, match=f"tiny.safetensors(: | ){message}"):
            call("tiny")


@pytest.mark.parametrize("changes, message", [
    ({"architecture": None}, "the card's field 'architecture' must be .*, got None"),
    ({"architecture": ["UNet"]}, r"the card's field 'architecture' must be .*, got \['UNet'\]"),
    ({"arguments": None}, "the card's field 'arguments' must be a dict of plain values, got None"),
    ({"arguments": [4]}, r"the card's field 'arguments' must be .*, got \[4\]"),
    ({"sha256": 7}, "the card's field 'sha256' must be 64 hexadecimal digits, got 7"),
    ({"vit": "tiny"}, "the card's field 'vit' must be a dict of name, sha256 and frozen, got 'tiny'"),
    ({"arguments": {"width": -4}}, r"UNet does not take the arguments \{'width': -4\}"),
    ({"arguments": {"width": 10**30}}, "UNet does not take the arguments"),
    ({"arguments": {"width": "4"}}, "UNet does not take the arguments"),
    ({"arguments": {"width": 4, "stages": 0}}, "UNet does not take the arguments .*stages must be"),
    ({"arguments": {"self": 4}}, "UNet does not take the arguments"),
], ids=str)
def test_card_that_makes_no_sense_is_refused_with_file_and_field(saved, changes, message):
    change_card(saved, **changes)
    with pytest.raises(CheckpointError, match=f"tiny.safetensors: {message}"):
        load("tiny")


def test_a_card_does_not_make_anything_go_to_the_hub(data, monkeypatch):
    import huggingface_hub

    def asked(*words, **options):
        pytest.fail("it went to the Hub")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", asked)
    card = {"architecture": "HybridViTUNet", "arguments": {"width": 4, "vit": "owner/model"}, "sha256": "0" * 64}
    for name, vit in (("hub", "owner/model"), ("folder", str(data)), ("path", ["a"])):
        card["arguments"]["vit"] = vit
        tensors = {"weight": torch.zeros(1)}
        card["sha256"] = tensors_sha256(tensors)
        save_tensors(tensors, data / "checkpoints" / f"{name}.safetensors", {"card": json.dumps(card)})
        with pytest.raises(CheckpointError, match=f"{name}.safetensors: HybridViTUNet does not take .*not name a ViT"):
            load(name)


def test_a_hybrids_card_names_its_vit_and_not_where_it_lay(data, tmp_path):
    from test_vit import save_vit

    from helpers.checkpoints import OtherViTError

    vit = save_vit(tmp_path / "mine")
    save(HybridViTUNet(4, str(vit)), "joined", CARD)
    card = read_card("joined")
    assert card["arguments"] == {"width": 4} and card["vit"]["name"] == "mine" and str(tmp_path) not in json.dumps(card)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DENOISE_VIT", str(vit))
        assert load("joined").vit.name == "mine"
        patch.setenv("DENOISE_VIT", str(save_vit(tmp_path / "other", seed=1)))
        with pytest.raises(OtherViTError, match="joined.safetensors: it was trained beside the ViT mine"):
            load("joined")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(model, saved, value):
    tensors, notes = read_tensors(saved)
    tensors["bottleneck.2.weight"][0, 0, 0, 0] = value
    card = {**json.loads(notes["card"]), "sha256": tensors_sha256(tensors)}
    save_tensors(tensors, saved, {"card": json.dumps(card)})
    with pytest.raises(CheckpointError, match="tiny.safetensors: .*finite.* bottleneck.2.weight"):
        load("tiny")


@pytest.mark.parametrize("value, half", [(float("nan"), False), (float("inf"), True), (1e6, True)])
def test_weights_that_could_not_be_loaded_are_not_written(model, saved, value, half):
    before = saved.read_bytes()
    with torch.no_grad():
        model.head.bias[0] = value  # a million is infinity in half precision
    with pytest.raises(CheckpointError, match="tiny.safetensors is not written: head.bias holds NaN or infinity"):
        save(model, "tiny", CARD, half=half)
    assert saved.read_bytes() == before


def test_truncated_safetensors_is_refused(saved):
    saved.write_bytes(saved.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="tiny.safetensors is not a readable safetensors file"):
        load("tiny")


@pytest.mark.parametrize("changes, message", [
    ({"architecture": "GAN"}, "no denoiser 'GAN'"),
    ({"architecture": "double_conv"}, "no denoiser 'double_conv'"),
    ({"architecture": "ViT"}, "no denoiser 'ViT'"),
    ({"architecture": "Denoiser"}, "no denoiser 'Denoiser'"),
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
    with pytest.raises(FileNotFoundError, match=r"no checkpoint 'unet' .*there: another, tiny\): restore it from git, "
                                                r"or train it with `python -m lab.train --only unet`"):
        load("unet")


def test_missing_checkpoint_in_an_empty_folder(data):
    with pytest.raises(FileNotFoundError, match="there: none"):
        load("unet")


def test_failure_while_writing_leaves_the_old_checkpoint(model, saved, monkeypatch):
    before = {path.name: path.read_bytes() for path in saved.parent.iterdir()}

    def full_disk(path, content, write=Path.write_bytes):
        write(path, content[:100])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="no space"):
        save(model, "tiny", CARD)
    assert {path.name: path.read_bytes() for path in saved.parent.iterdir()} == before
    load("tiny")


@pytest.mark.parametrize("at", ["before the rename", "after the rename", "while it is written"])
def test_a_kill_leaves_the_old_checkpoint_or_the_new_one(saved, data, at):
    """The process is killed for good; what it left is loaded, and its unfinished file goes with the next save."""
    code = f"""import os, signal, torch
from pathlib import Path
from helpers import checkpoints
from helpers.models import UNet
rename, write = os.replace, Path.write_bytes
def replace(source, target):
    if {at == "after the rename"}:
        rename(source, target)
    os.kill(os.getpid(), signal.SIGKILL)
def half(path, content):
    write(path, content[:len(content) // 2])
    os.kill(os.getpid(), signal.SIGKILL)
os.replace = replace
if {at == "while it is written"}:
    Path.write_bytes = half
torch.manual_seed(5)
checkpoints.save(UNet(width=4, stages=2), "tiny", {{"seed": 8}})"""
    old = load("tiny").state_dict()
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    new = at == "after the rename"
    assert read_card("tiny")["seed"] == (8 if new else 7)
    assert all(torch.equal(a, b) for a, b in zip(load("tiny").state_dict().values(), old.values(), strict=True)) != new
    left = [path.name for path in saved.parent.iterdir() if ".part" in path.name]
    assert len(left) == (0 if new else 1) and checkpoint_names() == ["tiny"]
    save(load("tiny"), "tiny", CARD)
    assert [path.name for path in saved.parent.iterdir()] == ["tiny.safetensors"]


def test_only_what_dead_processes_left_of_this_file_is_removed(model, saved):
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        pass
    gone = saved.with_name(f".tiny.{dead.pid}.part.safetensors")
    stay = [saved.with_name(name) for name in (
        f".tiny.{os.getppid()}.part.safetensors", f".tiny.elsewhere-{dead.pid}.part.safetensors",
        f".other.{dead.pid}.part.safetensors", f".tiny.{dead.pid}.part.json", ".tiny.x.part.safetensors")]
    for path in (gone, *stay):
        path.write_bytes(b"half")
    save(model, "tiny", CARD)
    assert not gone.exists() and all(path.read_bytes() == b"half" for path in stay)


def test_what_a_killed_writer_left_is_no_checkpoint(saved):
    shutil.copy(saved, saved.with_name(".tiny.123.part.safetensors"))
    assert checkpoint_names() == ["tiny"]


def test_shipped_goes_before_an_experiment(model, data):
    experiment = save(model, "tiny", CARD, folder="runs")
    assert checkpoint_path("tiny") == experiment == data / "runs" / "tiny.safetensors"
    assert checkpoint_names() == []
    shipped = save(model, "tiny", CARD)
    assert checkpoint_path("tiny") == shipped == data / "checkpoints" / "tiny.safetensors"


@pytest.mark.parametrize("kind, arguments", [
    (UNet, {"width": 4, "upsample": "bilinear"}), (ConvDAE, {"width": 4}), (DenseDAE, {"bottleneck": 2, "skip": True}),
    (CrackSegmenter, {"width": 4})], ids=lambda value: getattr(value, "__name__", ""))
def test_every_denoiser_makes_the_round(kind, arguments):
    model = kind(**arguments)
    save(model, "round", CARD, half=False)
    assert read_card("round")["arguments"] == arguments
    loaded = load("round")
    assert type(loaded) is kind
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))


def test_shared_weights_are_written_apart(data):
    weight = torch.rand(3)
    checkpoints.save_tensors({"a": weight, "b": weight, "c": weight[1:]}, data / "shared.safetensors")
    assert torch.equal(read_tensors(data / "shared.safetensors")[0]["c"], weight[1:])


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
        side = getattr(model, "size", None) or 224
        with torch.no_grad():
            assert torch.isfinite(model(torch.full((1, 3, side, side), 0.5))).all(), name
        assert {"data", "seed", "revision", "metrics", "recipe"} <= set(card), name
        assert card["recipe"]["architecture"] == card["architecture"]


def old_checkpoint(folder, name, seed, **card):
    """Write a checkpoint as version 0.1.0 did: the card beside, with the sha256 of the file."""
    import hashlib

    from safetensors.torch import save_file
    torch.manual_seed(seed)
    tensors = {key: value.half() for key, value in UNet(width=4, stages=2).state_dict().items()}
    save_file(tensors, folder / f"{name}.safetensors")
    digest = hashlib.sha256((folder / f"{name}.safetensors").read_bytes()).hexdigest()
    card = {"architecture": "UNet", "arguments": {"width": 4, "stages": 2}, "name": name, "sha256": digest, **card}
    (folder / f"{name}.json").write_text(json.dumps(card))
    return tensors, digest


def test_old_checkpoints_are_converted_bit_for_bit(data):
    folder = data / "checkpoints"
    folder.mkdir()
    tensors, digest = old_checkpoint(folder, "start", 0, history=[{"step": 3, "psnr": 20.5}])
    old_checkpoint(folder, "later", 1, start_sha256=digest)
    cards.main(["--convert", str(folder)])
    assert sorted(path.name for path in folder.iterdir()) == ["later.safetensors", "start.safetensors"]
    assert all(torch.equal(value, tensors[name]) for name, value in load_file(folder / "start.safetensors").items())
    assert read_card("start")["history"] == [{"step": 3, "psnr": 20.5}]
    assert read_card("later")["start_sha256"] == read_card("start")["sha256"] != digest
    assert isinstance(load("start"), UNet)


def test_a_changed_old_checkpoint_is_not_converted(data):
    old_checkpoint(data, "start", 0, sha256="0" * 64)
    with pytest.raises(CheckpointError, match="start.safetensors is not the file its card describes"):
        cards.convert(data)
    assert (data / "start.json").is_file()


def test_cards_are_printed(saved, capsys):
    cards.main([])
    assert capsys.readouterr().out.startswith("tiny                 UNet {'width': 4, 'stages': 2}, walls; ")
    cards.main(["tiny"])
    assert json.loads(capsys.readouterr().out) == read_card("tiny")
