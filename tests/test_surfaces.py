"""Synthetic surfaces: the same everywhere, of any size, cracks that are dark, and dark things that are not cracks."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.project import ROOT
from lab.surface_stats import STATISTICS, picture_statistics, spectrum_slope, surface_statistics
from surfaces.built_in import TEXTURE_SEEDS, TEXTURES, draw_cracked_texture
from surfaces.cracks import DISTRACTORS, LEAST_CRACK, draw_cracks, draw_distractors, draw_line, put_crack_on, wander
from surfaces.draw import KINDS, draw_surface
from surfaces.textures import cast_light, cell_stones, displace, noise, polygon_stones, smooth_noise

LUMA = np.float32([0.299, 0.587, 0.114])

# Mean of the image and fraction of crack of draw_surface(kind, seed, 96) for seeds 0 to 3. Checkpoints and results
# rest on these drawings: a change here means that they have to be made anew.
MEANS = {
    "asphalt": [(0.1919, 0.0239), (0.5254, 0.0612), (0.6031, 0.0248), (0.5618, 0.0000)],
    "concrete": [(0.5651, 0.0179), (0.3738, 0.0423), (0.3286, 0.0000), (0.1924, 0.0000)],
    "terrazzo": [(0.5728, 0.0371), (0.5743, 0.0365), (0.4168, 0.0952), (0.5722, 0.0000)],
    "sand": [(0.3064, 0.0674), (0.4110, 0.0650), (0.6359, 0.0000), (0.5989, 0.0000)],
    "painted": [(0.4083, 0.0492), (0.5063, 0.1126), (0.5927, 0.0135), (0.2453, 0.0000)],
}


@pytest.mark.parametrize("kind", KINDS)
def test_drawings_have_not_changed(kind):
    for seed, (mean, crack) in enumerate(MEANS[kind]):
        image, mask = draw_surface(kind, seed, 96)
        assert image.mean() == pytest.approx(mean, abs=1 / 255)
        assert mask.mean() == pytest.approx(crack, abs=0.001)


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(KINDS), st.integers(0, 2**40), st.integers(32, 120))
def test_types_ranges_and_determinism(kind, seed, size):
    image, mask = draw_surface(kind, seed, size)
    assert image.shape == (size, size, 3) and image.dtype == np.float32
    assert mask.shape == (size, size) and mask.dtype == bool
    assert np.isfinite(image).all() and image.min() >= 0 and image.max() <= 1
    assert image.std() > 0.002, "an image without any contrast"
    again, mask_again = draw_surface(kind, seed, size)
    assert np.array_equal(image, again) and np.array_equal(mask, mask_again)


@pytest.mark.parametrize("kind", ["asphalt", "painted"])
def test_largest_size(kind):
    image, mask = draw_surface(kind, 5, 1024)
    assert image.shape == (1024, 1024, 3) and mask.shape == (1024, 1024)


def test_drawing_leaves_global_random_state_alone():
    before = np.random.get_state()[1].copy()
    draw_surface(KINDS[0], 0, 32)
    assert np.array_equal(before, np.random.get_state()[1])


def test_seeds_and_kinds_differ():
    pictures = [draw_surface(kind, seed, 48)[0] for kind in KINDS for seed in range(4)]
    for i, first in enumerate(pictures):
        for second in pictures[i + 1 :]:
            assert np.abs(first - second).mean() > 0.005


def test_larger_images_show_more_surface_not_larger_grain():
    """Neighbouring pixels differ as much at 300 as at 100, where a magnified image would be a third as sharp."""
    ratios = []
    for kind in KINDS:
        for seed in range(3):
            small, large = (np.abs(np.diff(draw_surface(kind, seed, size)[0], axis=0)).mean() for size in (100, 300))
            ratios.append(large / small)
    assert 0.8 < np.median(ratios) < 1.25


def test_a_fifth_without_cracks_and_cracks_are_dark():
    empty, darker = 0, []
    for seed in range(40):
        for kind in KINDS:
            image, mask = draw_surface(kind, seed, 64)
            if not mask.any():
                empty += 1
                continue
            near = cv2.dilate(mask.astype(np.uint8), np.ones((17, 17))).astype(bool)
            near &= ~cv2.dilate(mask.astype(np.uint8), np.ones((5, 5))).astype(bool)
            if near.sum() > 30 and mask.sum() > 10:
                luma = image @ LUMA
                darker.append(luma[near].mean() - luma[mask].mean())
    assert 0.13 < empty / (40 * len(KINDS)) < 0.28
    assert np.mean(darker) > 0.05
    assert np.mean(np.array(darker) > 0) > 0.9


def test_darkness_alone_does_not_give_the_crack_away():
    """Every distractor darkens, each by itself, without any mask; images without cracks have them too."""
    for name in DISTRACTORS:
        light = draw_distractors(np.random.default_rng(1), 96, {name: 1.0})
        assert light.shape == (96, 96) and light.dtype == np.float32
        assert np.mean(light < 0.9) > 0.005, name
    assert np.array_equal(draw_distractors(np.random.default_rng(1), 32, {}), np.ones((32, 32), np.float32))
    dark_places = 0
    for seed in range(60):
        image, mask = draw_surface("concrete", seed, 64)
        if not mask.any():
            smooth = cv2.GaussianBlur(image @ LUMA, (0, 0), 1.5)
            dark_places += bool((smooth < 0.75 * np.median(smooth)).mean() > 0.01)
    assert dark_places >= 3


def test_errors_say_what_was_wanted_and_what_came():
    with pytest.raises(ValueError, match="asphalt, concrete, terrazzo, sand, painted.*'lawn'"):
        draw_surface("lawn", 0)
    for size in (31, 1025, 0, -5):
        with pytest.raises(ValueError, match=f"32 to 1024 pixels, got {size}"):
            draw_surface("sand", 0, size)


@pytest.mark.parametrize("slope", [0, 1, 2])
def test_noise_has_the_slope_asked_for(slope):
    slopes = [spectrum_slope(noise(np.random.default_rng(seed), 224, slope)) for seed in range(4)]
    assert np.mean(slopes) == pytest.approx(-slope, abs=0.25)


@pytest.mark.parametrize("scale", [1.5, 4, 10])
def test_smooth_noise_has_unit_deviation_at_any_size(scale):
    for size in (100, 300):
        deviations = [smooth_noise(np.random.default_rng(seed), size, scale).std() for seed in range(6)]
        assert np.mean(deviations) == pytest.approx(1, abs=0.15)


def test_stones_and_relief():
    body, dome, shade = cell_stones(np.random.default_rng(0), 100, 9, 1.0)
    assert 0.2 < body.mean() < 0.95 and 0 <= dome.min() and dome.max() <= 1
    assert body.shape == dome.shape == shade.shape == (100, 100)
    crowded, _ = polygon_stones(np.random.default_rng(0), 100, 5, 0.3, 2.0)
    apart, _ = polygon_stones(np.random.default_rng(0), 100, 5, 0.3, 2.0, apart=True)
    assert 0.1 < apart.mean() < crowded.mean() <= 1
    ramp = np.tile(np.arange(50, dtype=np.float32), (50, 1))  # rises to the right
    facing, shadow = cast_light(ramp, np.pi, 2.0)  # lit from the left
    # but for the left border, where the far side throws its shadow
    assert (facing[:, :-1] > 0.5).all() and not shadow[:, 4:].any()


def test_displace_takes_pixels_from_where_shifts_point():
    picture = np.arange(12, dtype=np.uint8).reshape(3, 4)[:, :3].copy()
    rows, columns = np.zeros((3, 3)), np.ones((3, 3))
    assert np.array_equal(displace(picture, [rows, columns]), picture[:, [1, 2, 2]])


def test_lines_have_the_width_asked_for():
    canvas = np.zeros((60, 200), np.uint8)
    path = np.stack([np.arange(0, 200, 1.5), np.full(134, 30.0)], 1)
    draw_line(canvas, path, np.full(len(path), 7.0))
    assert abs((canvas[:, 20:180] > 0).sum(axis=0).mean() - 7) <= 1
    assert len(wander(np.random.default_rng(0), 30, 0.5)) == 21


def test_cracks_cover_what_the_mask_says():
    for seed in range(8):
        cover, mask = draw_cracks(np.random.default_rng(seed), 80)
        assert cover.dtype == np.float32 and 0 <= cover.min() and cover.max() <= 1
        assert cover[mask].min() > 0.4 and cover[~mask].max() < 0.6


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**40), st.integers(32, 100))
def test_a_crack_put_on_an_image_darkens_it_there_and_nowhere_else(seed, size):
    image = np.random.default_rng(seed).uniform(0.2, 1, (size, size, 3))
    before = image.copy()
    cracked, mask = put_crack_on(image, seed)
    assert cracked.dtype == np.float32 and cracked.shape == image.shape and mask.dtype == bool
    assert mask.mean() >= LEAST_CRACK and np.array_equal(image, before)
    assert (cracked <= image.astype(np.float32)).all() and cracked[mask].mean() < 0.85 * image[mask].mean()
    far = ~cv2.dilate(mask.astype(np.uint8), np.ones((13, 13))).astype(bool)
    share = cracked[far] / image[far]
    assert not far.any() or np.median(share) > 0.99
    again, mask_again = put_crack_on(image, seed)
    assert np.array_equal(again, cracked) and np.array_equal(mask_again, mask)


def test_the_darkness_of_a_crack_can_be_chosen():
    wall = np.full((96, 96, 3), 0.8, np.float32)
    faint, mask = put_crack_on(wall, 3, darkness=(0.1, 0.1))
    deep, same = put_crack_on(wall, 3, darkness=(0.9, 0.9))
    assert np.array_equal(mask, same)  # the crack itself is another matter
    assert 0.8 * 0.9 - 1e-5 <= faint.min() < 0.75 and 0.8 * 0.1 - 1e-5 <= deep.min() < 0.2


@pytest.mark.parametrize(("image", "darkness", "error", "message"), [
    (np.zeros((40, 60, 3)), (0.5, 0.9), ValueError, r"square image .*got \(40, 60, 3\)"),
    (np.zeros((40, 40)), (0.5, 0.9), ValueError, r"square image .*got \(40, 40\)"),
    (np.zeros((8, 8, 3)), (0.5, 0.9), ValueError, r"32 pixels or more, got \(8, 8, 3\)"),
    (np.zeros((40, 40, 3), np.uint8), (0.5, 0.9), TypeError, r"floating point in \[0, 1\], got uint8"),
    (np.zeros((40, 40, 3)), (0.9, 0.5), ValueError, r"the smaller first, got \(0.9, 0.5\)"),
    (np.zeros((40, 40, 3)), (0.5, 1.5), ValueError, r"in 0..1, the smaller first, got \(0.5, 1.5\)"),
])
def test_what_no_crack_can_be_put_on(image, darkness, error, message):
    with pytest.raises(error, match=message):
        put_crack_on(image, 0, darkness)


def test_cracked_textures_are_tiles_of_real_photographs_with_a_crack():
    from skimage import data

    for kind in TEXTURES:
        photo = getattr(data, kind)().astype(np.float32) / 255
        for seed in range(TEXTURE_SEEDS, TEXTURE_SEEDS + 24, 5):
            image, mask = draw_cracked_texture(kind, seed)
            place = (seed - TEXTURE_SEEDS) // 2
            y, x = place // 4 * 288 // 2, place % 4 * 288 // 3  # 512 - 224 pixels of room, 3 rows and 4 columns
            tile = photo[y:y + 224, x:x + 224]
            assert np.array_equal(image[..., 0], image[..., 1]) and np.array_equal(image[..., 0], image[..., 2])
            assert mask.mean() >= LEAST_CRACK and image[mask].mean() < 0.8 * tile[mask].mean()
            assert np.median(np.abs(image[..., 0] - tile)) < 1e-6
    for seed in (0, 1, 10**9):  # any seed, not only the built-in test set's
        assert draw_cracked_texture("brick", seed)[0].shape == (224, 224, 3)
    with pytest.raises(ValueError, match="gravel, brick; got 'grass'"):
        draw_cracked_texture("grass", 0)


ALONE = """
import sys
class Nobody:  # nothing but `surfaces` is there, although the whole project may be installed
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("helpers", "app", "lab", "torch", "torchvision", "ipywidgets"):
            raise ImportError(f"{name} is not to be imported")
sys.meta_path.insert(0, Nobody())
import surfaces
from surfaces import KINDS, draw_surface
from surfaces import built_in, cracks, draw, files, folders, materials, photos, textures, tiles, training_images
made = ((f"{kind}-{seed}", *draw_surface(kind, seed, size=48)) for kind in KINDS for seed in range(3))
assert folders.write_folder("synthetic", made) == 15
found = folders.list_photos("synthetic", "train")
image, mask = tiles.read_pair(found[0])
image, mask = cracks.put_crack_on(image, seed=1)
photos.write_photo("cracked.jpg", image)
sheets = training_images.drawn_sheets(2, "cache", size=32)
assert mask.any() and len(sheets) == 2 and "torch" not in sys.modules
print(surfaces.__file__, len(found))
"""


def test_surfaces_is_a_crack_generator_on_its_own(tmp_path):
    shutil.copytree(ROOT / "surfaces", tmp_path / "surfaces", ignore=shutil.ignore_patterns("__pycache__"))
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, cwd=tmp_path,
                          env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    file, count = done.stdout.split()
    assert Path(file) == tmp_path / "surfaces" / "__init__.py" and int(count) >= 9
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "cracked.jpg", "surfaces", "synthetic"]


def test_importing_surfaces_imports_no_torch():
    done = subprocess.run([sys.executable, "-c", "import surfaces, sys; print(*sys.modules)"], capture_output=True,
                          text=True, cwd=ROOT, check=True)
    assert not {"torch", "ipywidgets", "matplotlib", "sklearn", "helpers"} & set(done.stdout.split())
    assert "surfaces.draw" in done.stdout.split()


def test_statistics_of_a_folder(tmp_path):
    lines = ["path,mask,source,photo,split,crack_fraction,y,x,group"]
    for seed in range(3):
        image, mask = draw_surface("concrete", seed, 64)
        cv2.imwrite(str(tmp_path / f"{seed}.png"), np.round(image[..., ::-1] * 255).astype(np.uint8))
        cv2.imwrite(str(tmp_path / f"{seed}_mask.png"), mask.astype(np.uint8) * 255)
        split = "test" if seed == 2 else "train"
        lines.append(f"{seed}.png,{seed}_mask.png,wall,{seed},{split},0,0,0,{seed}")
    (tmp_path / "manifest.csv").write_text("\n".join(lines) + "\n")
    result = surface_statistics(tmp_path, drawings=2)
    assert set(result["source"][result["set"] == "drawn"]) == set(KINDS)
    assert set(result["source"][result["set"] == "photos"]) == {"wall"} and set(result["figure"]) == set(STATISTICS)
    low, middle, high = result.query("set == 'photos' and figure == 'contrast'")[["low", "median", "high"]].iloc[0]
    assert low <= middle <= high
    # the drawing agrees with its own file, but for rounding to 8 bits
    drawn = [picture_statistics(*draw_surface("concrete", seed, 64))[0] for seed in range(2)]
    assert middle == pytest.approx(np.median(drawn), abs=0.002)
    (tmp_path / "0.png").unlink()
    with pytest.raises(FileNotFoundError, match="0.png"):
        surface_statistics(tmp_path, drawings=2)
    with pytest.raises(FileNotFoundError, match="manifest.csv"):
        surface_statistics(tmp_path / "nothing")
