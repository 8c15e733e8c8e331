"""Images to train on: sheets drawn once and kept, whatever happens to the disk, and photographs in memory."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data as skimage_data

from helpers.data import Crops, drawn_pool, open_dataset
from helpers.project import ROOT
from surfaces import draw, training_images
from surfaces.draw import KINDS
from surfaces.training_images import drawn_sheets, everyday_pool, photo_pool


@pytest.fixture(autouse=True)
def without_photographs(monkeypatch):
    monkeypatch.delenv("CRACK_PHOTOS", raising=False)


# --- photographs

@pytest.fixture
def folder(tmp_path):
    """Twelve photographs in one folder, two of them larger than a tile, all with masks."""
    for i in range(12):
        height, width = (448, 460) if i < 2 else (224, 240)
        crack = np.zeros((height, width), np.uint8)
        crack[100] = 255
        for path, array in ((tmp_path / "walls" / "images" / f"{i:02d}.png", np.full((height, width, 3), i, np.uint8)),
                            (tmp_path / "walls" / "masks" / f"{i:02d}.png", crack)):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
    return tmp_path / "walls"


def test_photo_pool_holds_whole_photographs(folder):
    pool = photo_pool(folder)["walls"]
    assert len(pool) == len({item.photo for item in open_dataset("train", folder).items})
    for image, mask in pool:
        assert image.dtype == np.uint8 and mask.dtype == bool and mask.shape == image.shape[:2]
    assert {image.shape for image, _ in pool} <= {(448, 460, 3), (224, 240, 3)}
    with pytest.raises(ValueError, match=r"\.png: wanted a photograph of at least 256 x 256"):
        photo_pool(folder, smallest=256)


def test_photo_pool_reads_again_what_is_too_large_to_keep(folder, monkeypatch):
    kept = photo_pool(folder)["walls"]
    monkeypatch.setattr(training_images, "IN_MEMORY", 0)
    lazy = photo_pool(folder)["walls"]
    assert not isinstance(lazy, list) and len(lazy) == len(kept)
    np.testing.assert_array_equal(lazy[1][0], kept[1][0])
    for a, b in zip(Crops({"w": kept}, 5), Crops({"w": lazy}, 5), strict=True):
        np.testing.assert_array_equal(a.noisy, b.noisy)


# --- sheets

def test_drawn_pool_is_drawn_once_and_again_when_the_code_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("DENOISE_DATA", str(tmp_path))
    real, drawn = draw.draw_surface, []

    def counted(kind, seed, size):
        drawn.append((kind, seed))
        return real(kind, seed, size)

    monkeypatch.setattr(draw, "draw_surface", counted)
    first = drawn_pool(6, size=48)
    assert len(first) == 6 and len(set(drawn)) == 6 and {kind for kind, _ in drawn} == set(KINDS)
    image, mask = first[0]
    assert image.shape == (48, 48, 3) and image.dtype == np.uint8 and mask.shape == (48, 48) and mask.dtype == bool
    expected, expected_mask = real(drawn[0][0], drawn[0][1], size=48)
    np.testing.assert_array_equal(image, np.round(expected * 255))
    np.testing.assert_array_equal(mask, expected_mask)
    again = drawn_pool(6, size=48)
    assert len(drawn) == 6 and all(np.array_equal(a[0], b[0]) for a, b in zip(first, again, strict=True))
    other = drawn_pool(6, size=48, seed=1)
    assert len(set(drawn)) == 12 and not np.array_equal(other[0][0], image)
    monkeypatch.setattr(training_images, "_drawing_code", lambda kinds: "changed")
    drawn_pool(6, size=48)
    assert len(drawn) == 18
    assert all(path.suffix == ".npy" and not path.name.startswith(".") for path in (tmp_path / "cache").iterdir())
    names = {item.name for item in open_dataset("train").items}
    assert not names & {f"{kind}-{seed:06d}" for kind, seed in drawn}


def test_a_pool_that_was_broken_off_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("DENOISE_DATA", str(tmp_path))
    real, calls = draw.draw_surface, []

    def stops(kind, seed, size):
        calls.append(seed)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(kind, seed, size)

    monkeypatch.setattr(draw, "draw_surface", stops)
    with pytest.raises(KeyboardInterrupt):
        drawn_pool(4, size=32)
    assert not list((tmp_path / "cache").iterdir())
    assert len(drawn_pool(4, size=32)) == 4


def test_drawn_pool_refuses_and_takes_kinds(tmp_path, monkeypatch):
    monkeypatch.setenv("DENOISE_DATA", str(tmp_path))
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        drawn_pool(0)
    only = drawn_pool(2, size=32, kinds=KINDS[1:2])
    assert len(only) == 2
    assert Crops({"drawn": only}, 3, size=32)[2].clean.shape == (3, 32, 32)


def broken(path, how):
    """Break a file of the cache as a crash or a hand would."""
    content = path.read_bytes()
    if how == "gone":
        path.unlink()
    elif how == "of another size":
        np.save(path, np.zeros((3, 32, 32), bool))
    elif how == "of another kind":
        np.save(path, np.load(path).astype(np.uint16))
    else:
        path.write_bytes({"cut": content[:-100], "a head": content[:90], "empty": b"", "noise": b"x" * 500}[how])


@pytest.mark.parametrize("how", ["cut", "a head", "empty", "noise", "gone", "of another size", "of another kind"])
@pytest.mark.parametrize("which", ["pictures", "masks"])
def test_a_sheet_that_is_not_whole_is_drawn_anew(tmp_path, which, how):
    first = [(image.copy(), mask.copy()) for image, mask in drawn_sheets(4, tmp_path, size=32)]
    (path,) = tmp_path.glob(f"*-{which}.npy")
    broken(path, how)
    again = drawn_sheets(4, tmp_path, size=32)
    assert len(list(tmp_path.iterdir())) == 2
    for (image, mask), (image_again, mask_again) in zip(first, again, strict=True):
        np.testing.assert_array_equal(image, image_again)
        np.testing.assert_array_equal(mask, mask_again)


def no_call(*arguments):
    raise AssertionError("nothing is drawn before there is room for it")


def test_a_full_disk_is_found_out_before_anything_is_drawn(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    monkeypatch.setattr(draw, "draw_surface", no_call)
    cache = tmp_path / "cache"
    with pytest.raises(OSError, match=r"cache: wanted 0\.4 MB for 6 sheets of 128 x 128 pixels, [\d.]+ MB are free "
                                      r"\(No space left on device\)") as caught:
        drawn_sheets(6, cache, size=128)
    assert caught.value.errno == errno.ENOSPC
    assert list(cache.iterdir()) == []
    monkeypatch.undo()
    assert len(drawn_sheets(6, cache, size=128)) == 6


@pytest.mark.skipif(os.name == "nt", reason="Windows has no limit on the size of a file")
def test_a_real_limit_is_a_sentence_not_a_signal(tmp_path):
    """A limit on the size of files stands for a full disk, which no test can make."""
    script = (f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
              f"from surfaces.training_images import drawn_sheets\n"
              f"drawn_sheets(6, {str(tmp_path / 'cache')!r}, size=128)\n")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1, done
    assert "cache: wanted 0.4 MB for 6 sheets of 128 x 128 pixels" in done.stderr
    assert list((tmp_path / "cache").iterdir()) == []


def on_disk(path):
    """Bytes that the disk holds of a file, where that can be asked; what the file pretends to be elsewhere."""
    return path.stat().st_blocks * 512 if sys.platform == "linux" else path.stat().st_size


@pytest.mark.parametrize("number", [None, errno.EOPNOTSUPP, errno.EINVAL])
def test_where_the_system_reserves_nothing_the_space_is_written_out(tmp_path, monkeypatch, number):
    """As on macOS and Windows, and on file systems that refuse the call."""
    def refuses(*arguments):
        raise OSError(number, "not here")

    if number is None:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    else:
        monkeypatch.setattr(os, "posix_fallocate", refuses, raising=False)
    monkeypatch.setattr(training_images, "CHUNK", 1000)
    taken, new_array = [], training_images._new_array

    def watched(path, dtype, shape):
        array = new_array(path, dtype, shape)
        taken.append((on_disk(path), array.nbytes))
        assert not array.any() and array.shape == shape
        return array

    monkeypatch.setattr(training_images, "_new_array", watched)
    sheets = drawn_sheets(3, tmp_path / "a", size=64)
    assert len(taken) == 2 and all(blocks >= size for blocks, size in taken)
    monkeypatch.undo()
    for one, other in zip(sheets, drawn_sheets(3, tmp_path / "b", size=64), strict=True):
        np.testing.assert_array_equal(one[0], other[0])


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="the system reserves nothing")
def test_the_space_of_both_files_is_taken_before_they_are_written(tmp_path):
    array = training_images._new_array(tmp_path / "a.npy", np.uint8, (100, 64, 64, 3))
    assert on_disk(tmp_path / "a.npy") >= array.nbytes == 100 * 64 * 64 * 3
    array[7, 3] = 9
    array.flush()
    assert np.load(tmp_path / "a.npy").sum() == 9 * 64 * 3


def test_a_cache_that_is_no_folder_or_may_not_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("here")
    for cache in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(OSError, match=rf"{cache.name}: wanted 0\.0 MB for 2 sheets of 32 x 32 pixels"):
            drawn_sheets(2, cache, size=32)
    assert (tmp_path / "file").read_text() == "here"
    sheets = drawn_sheets(2, tmp_path / "cache", size=32)
    real_open = open

    def read_only(path, mode="r", *arguments, **options):
        if set(mode) & set("wax+"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real_open(path, mode, *arguments, **options)

    # not by the folder's mode, which root may pass over
    monkeypatch.setattr("builtins.open", read_only)
    with pytest.raises(PermissionError, match=r"cache: wanted .* 3 sheets .*Permission denied"):
        drawn_sheets(3, tmp_path / "cache", size=32)
    again = drawn_sheets(2, tmp_path / "cache", size=32)  # what is there is read all the same
    assert np.array_equal(again[1][0], sheets[1][0])


def test_workers_draw_the_same_sheets(tmp_path):
    for one, other in zip(drawn_sheets(5, tmp_path / "1", size=32),
                          drawn_sheets(5, tmp_path / "2", size=32, workers=2), strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])


def test_sheets_are_rounded_half_to_even_as_those_that_networks_were_trained_on(tmp_path, monkeypatch):
    halves = np.float32([0.5, 1.5, 2.5, 254.5]) / 255
    assert (halves * 255).tolist() == [0.5, 1.5, 2.5, 254.5]
    image = np.zeros((32, 32, 3), np.float32)
    image[0, :4, 0] = halves
    monkeypatch.setattr(draw, "draw_surface", lambda kind, seed, size: (image, np.zeros((32, 32), bool)))
    assert drawn_sheets(1, tmp_path, size=32)[0][0][0, :4, 0].tolist() == [0, 2, 2, 254]


# --- the drawing code

def test_the_drawing_code_is_every_module_that_drawing_uses():
    """A drawing module that is not hashed would leave old sheets in use."""
    names = {module.__name__ for module in training_images.DRAWING}
    used = {name for module in training_images.DRAWING for name in re.findall(
        r"^from (surfaces\.\w+) import", Path(module.__file__).read_text(encoding="utf-8"), re.M)}
    assert used <= names
    assert names == {f"surfaces.{name}" for name in ("draw", "materials", "cracks", "textures")}


@pytest.mark.parametrize("module", training_images.DRAWING, ids=lambda module: module.__name__)
def test_a_change_of_a_drawing_module_changes_its_hash_and_a_missing_one_is_an_error(module, tmp_path, monkeypatch):
    before = training_images._drawing_code(KINDS)
    assert before == training_images._drawing_code(KINDS) != training_images._drawing_code(KINDS[:2])
    changed = tmp_path / "changed.py"
    changed.write_bytes(Path(module.__file__).read_bytes() + b"# other\n")
    monkeypatch.setattr(module, "__file__", str(changed))
    assert training_images._drawing_code(KINDS) != before
    changed.unlink()
    with pytest.raises(FileNotFoundError, match="changed.py"):
        training_images._drawing_code(KINDS)
    with pytest.raises(FileNotFoundError, match="changed.py"):
        drawn_sheets(2, tmp_path / "cache", size=32)


# --- everyday photographs

def test_everyday_photographs_hold_no_test_texture():
    pool = everyday_pool()["everyday"]
    assert len(pool) >= 10 and all(mask is None and image.dtype == np.uint8 for image, mask in pool)
    for texture in (skimage_data.gravel(), skimage_data.brick()):
        assert not any(np.array_equal(image[..., 0], texture) for image, _ in pool)


def test_a_folder_adds_everyday_photographs_and_reduces_large_ones(tmp_path):
    shipped = len(everyday_pool()["everyday"])
    for name, size in (("large", (2800, 700)), ("small", (300, 400))):
        Image.new("RGB", size, (9, 120, 200)).save(tmp_path / f"{name}.jpg")
    added = [image.shape for image, mask in everyday_pool(tmp_path)["everyday"][shipped:]]
    assert added == [(350, 1400, 3), (400, 300, 3)]
    with pytest.raises(FileNotFoundError, match=r"photographs \(.jpg, .*\), got .*nowhere"):
        everyday_pool(tmp_path / "nowhere")


def test_everyday_photographs_may_be_jpeg_png_or_webp_in_subfolders(tmp_path):
    shipped = len(everyday_pool()["everyday"])
    names = ("a.JPG", "b.jpeg", "deep/c.png", "deep/er/d.PNG", "e.webp", "f.WebP")
    for width, name in enumerate(names, 300):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (width, 280), (9, 120, 200)).save(tmp_path / name)
    (tmp_path / "licence.txt").write_text("free")
    added = [image.shape[1] for image, mask in everyday_pool(tmp_path)["everyday"][shipped:]]
    assert sorted(added) == [300, 301, 302, 303, 304, 305]
