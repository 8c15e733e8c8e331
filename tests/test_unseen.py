"""Noise and pictures that no network was trained on."""

import numpy as np
import pytest
import torch

from helpers.vit import open_vit
from lab.unseen import GAIN, READ, UNSEEN, Familiar, camera_noise, jpeg_noise, mean_tokens

GREY = torch.full((3, 64, 64), 0.5)


@pytest.mark.parametrize("noise", UNSEEN.values(), ids=list(UNSEEN))
def test_noise_is_seeded_by_the_name_and_stays_in_range(noise):
    noisy = noise(GREY, "wall")
    assert noisy.shape == GREY.shape and noisy.dtype == torch.float32
    assert 0 <= noisy.min() and noisy.max() <= 1 and noisy.std() > 0.02
    assert torch.equal(noisy, noise(GREY, "wall")) and not torch.equal(noisy, noise(GREY, "floor"))


def test_camera_noise_grows_with_light():
    for light in (0.1, 0.4):
        noisy = camera_noise(torch.full((3, 128, 128), light), "wall")
        assert noisy.std().item() == pytest.approx((GAIN * light + READ**2) ** 0.5, rel=0.1)


def test_jpeg_makes_noise_hang_together():
    noise = (jpeg_noise(GREY, "wall") - GREY)[0]
    plain = (UNSEEN["Gaussian, σ = 75"](GREY, "wall") - GREY)[0]

    def with_neighbour(x):
        return np.corrcoef(x[:, 1:].ravel(), x[:, :-1].ravel())[0, 1]
    assert with_neighbour(noise) > with_neighbour(plain) + 0.05


def test_what_is_known_is_near_and_what_is_not_is_far():
    generator = torch.Generator().manual_seed(0)
    known = torch.randn(40, 8, generator=generator)
    familiar = Familiar(known)
    assert familiar(known).max() == 0
    assert familiar(torch.randn(40, 8, generator=generator)).median() < 1.2
    assert familiar(torch.randn(5, 8, generator=generator) + 9).min() > 2


def test_familiarity_equals_a_slow_loop():
    known, new = np.random.default_rng(0).normal(size=(2, 30, 5)).astype(np.float32) * np.float32([1, 2, 3, 0.1, 9])
    known[1] = known[0]  # an image that is there twice has a neighbour at no distance
    deviation = np.array([np.sqrt(sum((v - column.mean()) ** 2 for v in column) / 29) for column in known.T])

    def nearest(vector, others):
        return min(np.sqrt((((vector - other) / deviation) ** 2).sum()) for other in others)

    usual = np.quantile([nearest(v, np.delete(known, i, 0)) for i, v in enumerate(known)], 0.95)
    wanted = [nearest(v, known) / usual for v in new]
    np.testing.assert_allclose(Familiar(known)(torch.from_numpy(new)).numpy(), wanted, rtol=1e-5)


def test_bad_vectors_are_refused():
    with pytest.raises(ValueError, match="N at least 3, got"):
        Familiar(np.zeros((2, 4)))
    with pytest.raises(ValueError, match=r"\(M, 4\), got \(1, 5\)"):
        Familiar(np.random.default_rng(0).random((5, 4)))(torch.zeros(1, 5))


def test_tokens_of_any_size():
    vit = open_vit()
    vectors = mean_tokens(vit, [torch.rand(3, 48, 64), torch.rand(3, 230, 224)])
    assert vectors.shape == (2, vit.channels)
    with pytest.raises(ValueError, match="16 x 16 pixels is wanted, got 12 x 40"):
        mean_tokens(vit, [torch.zeros(3, 12, 40)])
