"""The filters: each is better than doing nothing, and the search for their parameters ranks as it says."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from skimage import data as skimage_data
from skimage.color import gray2rgb

from helpers.data import Item, make_sample
from helpers.metrics import mse
from helpers.noise import add_noise
from lab import filters
from lab.filters import FILTERS, GRIDS, search
from surfaces.draw import draw_surface

SIGMA = 50
OURS = [name for name in FILTERS if name != "bm3d"]  # an optional package, and slow


def brick():
    return gray2rgb(skimage_data.brick()[:96, :96]).astype(np.float32) / 255


def drawn():
    return draw_surface("concrete", 3, size=96)[0]


@pytest.fixture(scope="module", params=[drawn, brick], ids=lambda make: make.__name__)
def pair(request):
    clean = request.param()
    noisy = add_noise(torch.from_numpy(clean.transpose(2, 0, 1).copy()), SIGMA, torch.Generator().manual_seed(0))
    return clean, np.ascontiguousarray(noisy.numpy().transpose(1, 2, 0))


def sample(clean, source, seed=0):
    item = Item(f"{source}-{seed}", source, source, source, False)
    return make_sample(item, clean, np.zeros(clean.shape[:2], bool), SIGMA, np.random.default_rng(seed))


@pytest.mark.parametrize("name", OURS)
def test_filter_lowers_the_error(name, pair):
    clean, noisy = pair
    before = noisy.copy()
    denoised = FILTERS[name](noisy, SIGMA)
    assert denoised.shape == clean.shape and np.issubdtype(denoised.dtype, np.floating)
    assert np.isfinite(denoised).all()
    assert mse(denoised, clean) < 0.7 * mse(noisy, clean)
    assert np.array_equal(noisy, before)  # the input is left alone


@pytest.mark.filterwarnings("ignore:Level value:UserWarning")  # a small picture has few levels
@pytest.mark.parametrize("name", OURS)
def test_every_entry_of_the_grid_is_accepted(name):
    clean = drawn()[:32, :32]
    for parameters in GRIDS[name]:
        assert FILTERS[name](clean, SIGMA, **parameters).shape == clean.shape


def test_every_filter_has_a_grid():
    assert GRIDS.keys() == FILTERS.keys()
    assert all(GRIDS.values())


@pytest.mark.parametrize("name", ["bilateral", "nlm", "tv", "wavelet"])
def test_less_noise_is_filtered_less(name):
    clean = brick()[:48, :48]
    assert mse(FILTERS[name](clean, 1), clean) < mse(FILTERS[name](clean, SIGMA), clean)


def test_gaussian_blur_is_one_of_constants():
    grey = np.full((16, 16, 3), 0.4, np.float32)
    np.testing.assert_allclose(filters.gaussian_blur(grey, SIGMA, kernel=9, blur=2.0), grey, atol=1e-6)


def test_search_ranks_the_best_first():
    samples = [sample(drawn()[:48, :48], "concrete"), sample(brick()[:48, :48], "brick")]
    tried = search("tv", samples, SIGMA)
    assert [error for error, _ in tried] == sorted(error for error, _ in tried)
    assert sorted(parameters["weight"] for _, parameters in tried) == sorted(entry["weight"] for entry in GRIDS["tv"])
    error, parameters = tried[0]
    pictures = [(s.noisy.permute(1, 2, 0).numpy(), s.clean.permute(1, 2, 0).numpy()) for s in samples]
    wanted = np.mean([mse(filters.total_variation(noisy, SIGMA, **parameters), clean) for noisy, clean in pictures])
    assert error == pytest.approx(wanted, rel=1e-5)


def test_sources_weigh_equally_in_the_search(monkeypatch):
    def constant(noisy, sigma, level):
        return np.full_like(noisy, level)

    monkeypatch.setitem(FILTERS, "constant", constant)
    monkeypatch.setitem(GRIDS, "constant", [{"level": 0.0}, {"level": 0.45}, {"level": 1.0}])
    black, white = np.zeros((8, 8, 3), np.float32), np.ones((8, 8, 3), np.float32)
    samples = [*(sample(black, "coal", seed) for seed in range(9)), sample(white, "snow")]
    tried = search("constant", samples, SIGMA)
    assert tried[0] == (pytest.approx((0.45**2 + 0.55**2) / 2, rel=1e-5), {"level": 0.45})  # not the nine's 0.0
    assert [error for error, _ in tried[1:]] == pytest.approx([0.5, 0.5])


def test_bm3d_is_told_the_noise_on_the_picture_s_scale(monkeypatch):
    asked = []
    monkeypatch.setitem(sys.modules, "bm3d", SimpleNamespace(bm3d_rgb=lambda *words: asked.append(words) or words[0]))
    noisy = drawn()
    assert filters.bm3d(noisy, 51) is noisy
    assert asked == [(noisy, pytest.approx(0.2))]


def test_missing_bm3d_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "bm3d", None)
    with pytest.raises(ImportError, match=r"non-commercial use only: pip install '\.\[bm3d\]'"):
        filters.bm3d(np.zeros((8, 8, 3), np.float32), SIGMA)
