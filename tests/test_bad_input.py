"""Bad input, wherever a person can put one: what is said names what was wanted and what came, and nothing is lost."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from app.explorer import CamExplorer
from helpers import checkpoints, project
from helpers.cam import activation_map, overlay, threshold_cam
from helpers.checkpoints import CheckpointError, load
from helpers.data import Crops, open_dataset
from helpers.denoise import denoise
from helpers.denoise import main as denoise_command
from helpers.losses import CombinedLoss, RegionalSharpnessLoss
from helpers.metrics import psnr, ssim
from helpers.models import DenseDAE, HybridViTUNet, UNet
from helpers.noise import add_noise
from helpers.project import pick_device, results
from helpers.vit import open_vit, vit_blocks
from lab.controls import MovedCamLoss
from lab.intervals import paired_bootstrap
from lab.provenance import write_json
from lab.unseen import Familiar
from surfaces.draw import draw_surface
from surfaces.files import write_new
from surfaces.photos import read_photo

SPLITS = ("train", "valid", "test")
PICTURE = torch.full((3, 32, 32), 0.5)
UNET = UNet(4).eval()


def folder(path, **files):
    """Write files, {name: bytes, or the (height, width) of a grey picture}; return the folder."""
    for name, content in files.items():
        target = path / name.replace("__", "/").replace("_png", ".png").replace("_csv", ".csv").replace("_jpg", ".jpg")
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, tuple):
            Image.fromarray(np.full(content, 128, np.uint8)).save(target)
        else:
            target.write_bytes(content)
    return path


def broken_checkpoint(path, monkeypatch, how):
    """Put a checkpoint "broken" into a data folder of its own and load it."""
    (path / "checkpoints").mkdir()
    monkeypatch.setenv("DENOISE_DATA", str(path))
    weights = checkpoints.save(UNET, "broken", {"data": "none"})
    tensors, card = checkpoints.read_tensors(weights)[0], checkpoints.read_card("broken")
    if how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-200])
    elif how == "changed":
        weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    elif how == "pickle":
        torch.save({"weight": torch.zeros(1)}, weights)
    else:
        if how == "other":
            tensors = {"weight": torch.zeros(1)}
            card["sha256"] = checkpoints.tensors_sha256(tensors)
        card |= {"architecture": {"architecture": "Unett"}, "arguments": {"arguments": {"wide": 4}}}.get(how, {})
        checkpoints.save_tensors(tensors, weights, {"card": "{" if how == "card" else json.dumps(card)})
    return load("broken")


def set_and(monkeypatch, name, value, call):
    monkeypatch.setenv(name, value)
    return call()


CASES = {
    # pictures and folders
    "no such folder": (lambda p, m: open_dataset("test", photos=p / "none"), FileNotFoundError,
                       "no such folder of photographs .wanted"),
    "an empty folder": (lambda p, m: open_dataset("test", photos=p), FileNotFoundError, "no photographs in it .wanted"),
    "a text among pictures": (lambda p, m: open_dataset("test", photos=folder(p, a_png=(250, 250), notes_doc=b"x")),
                              ValueError, "notes_doc.*wanted only images"),
    "a truncated picture": (lambda p, m: read_photo(folder(p, a_png=b"\x89PNG\r\n\x1a\nxx") / "a.png"),
                            (OSError, ValueError), r"a\.png"),
    "a picture that is not there": (lambda p, m: read_photo(p / "none.png"), (OSError, ValueError), r"none\.png"),
    "a picture too small": (lambda p, m: [open_dataset(split, photos=folder(
        p, a_png=(40, 40), b_png=(250, 250), c_png=(250, 250), d_png=(250, 250))) for split in SPLITS],
        ValueError, r"a\.png.*224"),
    "a mask of another size": (lambda p, m: [open_dataset(split, photos=folder(p, **{
        f"{x}_png": (250, 250) for x in "abcd"}, **{f"{x}_mask_png": (99, 250) for x in "abcd"}))[0]
        for split in ("train",)], ValueError, "mask.*99"),
    "too few photographs": (lambda p, m: open_dataset("test", photos=folder(p, a_png=(250, 250))), ValueError,
                            "wanted at least . photographs to split, got 1"),
    "a manifest without columns": (lambda p, m: open_dataset("test", photos=folder(p, manifest_csv=b"path,mask\n")),
                                   ValueError, "wanted the columns .*missing source"),
    "an unknown split": (lambda p, m: open_dataset("tests"), ValueError, "train, valid, test, got 'tests'"),
    "no pictures asked for": (lambda p, m: open_dataset("train", photos=False, length=0), ValueError,
                              "length must be a whole number of at least 1, got 0"),
    "a negative seed": (lambda p, m: open_dataset("train", photos=False, seed=-1), ValueError, "at least 0, got -1"),
    # noise
    "negative sigma": (lambda p, m: add_noise(PICTURE, -1), ValueError, "-1"),
    "sigma as a fraction of 1": (lambda p, m: add_noise(PICTURE, float("nan")), ValueError, "nan"),
    "sigma turned round": (lambda p, m: open_dataset("train", photos=False, sigma=(60, 5)), ValueError, "60.*5"),
    "noise on bytes": (lambda p, m: add_noise(torch.zeros(3, 8, 8, dtype=torch.uint8), 5), TypeError,
                       "floating-point tensor in .0, 1., got torch.uint8"),
    # surfaces
    "an unknown surface": (lambda p, m: draw_surface("marble", 0), ValueError, "asphalt.*got 'marble'"),
    "a surface too small": (lambda p, m: draw_surface("sand", 0, size=8), ValueError, "32.*1024.*got 8"),
    # networks
    "a side that is no multiple of 8": (lambda p, m: UNET(torch.zeros(1, 3, 30, 32)), ValueError, "8.*30"),
    "a picture without a batch": (lambda p, m: UNET(PICTURE), ValueError, r"\(B, 3, H, W\), got \(3, 32, 32\)"),
    "a dense network at another size": (lambda p, m: DenseDAE(4)(torch.zeros(1, 3, 64, 64)), ValueError, "56.*64"),
    "an unknown join": (lambda p, m: HybridViTUNet(8, join="glue"), ValueError, "join must be one of .*got 'glue'"),
    "a block that is not there": (lambda p, m: HybridViTUNet(8, blocks=[99]), ValueError, r"0\.\.11, got \[99\]"),
    "an unknown checkpoint": (lambda p, m: load("unett"), FileNotFoundError, "no checkpoint 'unett'.*unet"),
    **{f"a checkpoint: {how}": (lambda p, m, how=how: broken_checkpoint(p, m, how), CheckpointError, words)
       for how, words in {
           "truncated": "not a readable safetensors file", "changed": "sha256 differs.*restore it",
           "pickle": "not a readable safetensors file", "other": "does not fit UNet",
           "card": "broken.safetensors needs a card", "architecture": "no denoiser 'Unett'",
           "arguments": "does not take the arguments"}.items()},
    # ViTs
    "a ViT folder that is not there": (lambda p, m: open_vit(str(p / "vit")), (FileNotFoundError, OSError, ValueError),
                                       "vit"),
    "a ViT of the Hub, offline": (lambda p, m: set_and(m, "HF_HUB_OFFLINE", "1", lambda: open_vit("nobody/no-vit")),
                                  (OSError, ValueError), "nobody/no-vit"),
    "blocks of a U-Net": (lambda p, m: vit_blocks(UNET), TypeError, "ViT of open_vit.*got UNet"),
    # maps
    "an unknown method": (lambda p, m: activation_map(UNET, PICTURE, "bottleneck", "EigenCam"), ValueError,
                          "method must be one of EigenCAM.*got 'EigenCam'"),
    "an unknown layer": (lambda p, m: activation_map(UNET, PICTURE, "encoder 9"), ValueError,
                         "encoder 1.*got 'encoder 9'"),
    "an unknown target": (lambda p, m: activation_map(UNET, PICTURE, "bottleneck", "GradCAM", "class"), ValueError,
                          "target must be mean.*got 'class'"),
    "an empty region": (lambda p, m: activation_map(UNET, PICTURE, "bottleneck", "GradCAM", np.zeros((32, 32), bool)),
                        ValueError, "at least one pixel, got .* with 0"),
    "an unknown sign": (lambda p, m: activation_map(UNET, PICTURE, "bottleneck", sign="up"), ValueError, "'up'"),
    "a picture full of NaN": (lambda p, m: activation_map(UNET, PICTURE * float("nan"), "bottleneck"), ValueError,
                              "not finite"),
    "thresholds turned round": (lambda p, m: threshold_cam(np.zeros((4, 4)), 0.9, 0.4), ValueError,
                                "0 <= lower <= upper <= 1, got 0.9 and 0.4"),
    "a threshold in per cent": (lambda p, m: threshold_cam(np.zeros((4, 4)), 40, 90), ValueError, "got 40 and 90"),
    "an unknown way to threshold": (lambda p, m: threshold_cam(np.zeros((4, 4)), by="rank"), ValueError, "got 'rank'"),
    "a map that is a picture": (lambda p, m: threshold_cam(np.zeros((4, 4, 3))), ValueError, r"got \(4, 4, 3\)"),
    "a map of another size": (lambda p, m: overlay(PICTURE, np.zeros((4, 4), np.float32)), ValueError, "one size"),
    "an unknown colour map": (lambda p, m: overlay(PICTURE, np.zeros((32, 32), np.float32), cmap="rainbows"),
                              ValueError, "got 'rainbows'"),
    "an explorer of nothing": (lambda p, m: CamExplorer({}, []), ValueError, "networks and samples, got 0 and 0"),
    # losses and training
    "an unknown match": (lambda p, m: RegionalSharpnessLoss(match="sort"), ValueError, "sorted.*got 'sort'"),
    "a picture below the window": (lambda p, m: RegionalSharpnessLoss(window=0), ValueError, "window.*got 0"),
    "an unknown control": (lambda p, m: MovedCamLoss(attention=len, control="none"), ValueError, "got 'none'"),
    "weights above 1": (lambda p, m: CombinedLoss({"a": (RegionalSharpnessLoss(), 0.7), "b": (
        RegionalSharpnessLoss(), 0.7)}), ValueError, "sum to at most 1"),
    "crops larger than pictures": (lambda p, m: Crops({"own": [(np.zeros((64, 64, 3), np.uint8), np.zeros((64, 64)))]},
                                                      5, size=128)[0], ValueError, "at least 128 x 128 .* got 64 x 64"),
    # numbers
    "pictures of two sizes": (lambda p, m: psnr(PICTURE, torch.zeros(3, 16, 16)), ValueError, "one shape, got"),
    "bytes for a metric": (lambda p, m: psnr(PICTURE, torch.zeros(3, 32, 32, dtype=torch.uint8)), ValueError,
                           r"floating point in \[0, 1\], got"),
    "a picture of 255": (lambda p, m: psnr(PICTURE, 255 * PICTURE), ValueError, r"must lie in \[0, 1\], got 128 to"),
    "ssim of a stamp": (lambda p, m: ssim(torch.zeros(3, 8, 8), torch.zeros(3, 8, 8)), ValueError, "got 8 x 8"),
    "values of two lengths": (lambda p, m: paired_bootstrap([1, 2], [1]), ValueError, "one shape"),
    "too few known pictures": (lambda p, m: Familiar(np.zeros((1, 3))), ValueError, "N at least 3, got"),
    "results that are not there": (lambda p, m: results("nothing"), FileNotFoundError, "nothing"),
    # denoising
    "a picture in grey": (lambda p, m: denoise(UNET, np.zeros((9, 9), np.float32)), ValueError, r"\(H, W, 3\)"),
    "a name for a model": (lambda p, m: denoise("unet", PICTURE), TypeError, r"such as load\('unet'\), got str"),
    "a tile of 100": (lambda p, m: denoise(UNET, PICTURE, tile=100), ValueError, "multiple of 8 pixels, got 100"),
    "NaN in a photograph": (lambda p, m: denoise(UNET, PICTURE * float("nan")), ValueError, "3072 NaN"),
    "an unknown device": (lambda p, m: set_and(m, "DENOISE_DEVICE", "gpu", pick_device), (ValueError, RuntimeError),
                          "gpu"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_it_says_what_was_wanted_and_what_came(case, tmp_path, monkeypatch):
    call, error, pattern = case
    with pytest.raises(error, match=f"(?s){pattern}"):
        call(tmp_path, monkeypatch)


COMMANDS = {
    "no such photograph": (["none.jpg", "out.png"], 2, "there is no none.jpg"),
    "no such model": (["a.png", "out.png", "--model", "best"], 2, "no checkpoint 'best'"),
    "a result of no kind": (["a.png", "out.doc"], 2, "end in one of"),
    "a folder into a file": ([".", "out.png"], 2, "OUT must be another folder"),
    "a result that is there": (["a.png", "a.png"], 1, "never overwritten"),
    "a broken photograph": (["broken.png", "out.png"], 1, "broken.png"),
}


@pytest.mark.parametrize("case", COMMANDS.values(), ids=list(COMMANDS))
def test_the_command_line_names_the_mistake_and_its_status_says_so(case, tmp_path, monkeypatch, capsys):
    arguments, status, pattern = case
    folder(tmp_path, a_png=(24, 24), broken_png=b"\x89PNG\r\n\x1a\nxx")
    before = (tmp_path / "a.png").read_bytes()
    monkeypatch.chdir(tmp_path)
    try:
        got = denoise_command(arguments)
    except SystemExit as leave:
        got = leave.code
    assert got == status and pattern in capsys.readouterr().err
    assert (tmp_path / "a.png").read_bytes() == before and not (tmp_path / "out.png").exists()


WRITERS = {
    "results": lambda path: write_json(path, {"new": 1}),
    "a checkpoint": lambda path: checkpoints.save(UNET, "full", {}),
    "a picture": lambda path: write_new(path.with_name("new.png"), b"png"),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=list(WRITERS))
def test_a_full_disk_takes_nothing_away(write, tmp_path, monkeypatch):
    (tmp_path / "checkpoints").mkdir()
    monkeypatch.setenv("DENOISE_DATA", str(tmp_path))
    old = tmp_path / "old.json"
    write_json(old, {"old": 1})
    checkpoints.save(UNET, "full", {})
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")
    for owner, name in ((Path, "write_text"), (Path, "write_bytes")):
        monkeypatch.setattr(owner, name, full)
    with pytest.raises(OSError, match="No space left"):
        write(old)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_nothing_unpickles():
    code = "\n".join(path.read_text(encoding="utf-8") for part in ("surfaces", "helpers", "app", "lab")
                     for path in (project.ROOT / part).rglob("*.py"))
    assert "torch.load(" not in code and "allow_pickle" not in code and "import pickle" not in code


def test_importing_downloads_and_opens_nothing():
    script = ("import socket\n"
              "def refuse(*a, **k): raise SystemExit('a connection was opened')\n"
              "socket.socket.connect = refuse\n"
              "import app.explorer, helpers.training, helpers.denoise\n"
              "from helpers.vit import open_vit; open_vit()\n")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=project.ROOT)
    assert done.returncode == 0, done.stderr[-500:]
