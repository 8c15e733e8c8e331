"""Results of some methods put into those that there are: only where pictures and noise are the same."""

import pytest

from lab import report

RESULTS = {"revision": "a", "per_item": {"noisy|50": {"mse": [1, 2]}, "unet|50": {"mse": [0.4, 0.5]}},
           "rows": [{"method": name, "source": "wall", "sigma": sigma, "psnr": psnr}
                    for name, sigma, psnr in (("noisy", 50, 14), ("unet", 25, 29), ("unet", 50, 26), ("conv", 50, 23))]}


def test_only_what_was_measured_again_is_replaced():
    rows = [{"method": name, "source": "wall", "sigma": 50, "psnr": psnr} for name, psnr in (("unet", 27), ("new", 28))]
    new = {"noisy|50": {"mse": [1, 2]}, "unet|50": {"mse": [0.3, 0.4]}, "new|50": {"mse": [0.2, 0.3]}}
    note = {"revision": "b", "methods": ["unet", "new"]}
    found = report.merged(RESULTS, rows, new, note)
    assert {(row["method"], row["sigma"]): row["psnr"] for row in found["rows"]} == {
        ("noisy", 50): 14, ("unet", 25): 29, ("unet", 50): 27, ("conv", 50): 23, ("new", 50): 28}
    assert found["per_item"] == new and found["updates"] == [note] and found["revision"] == "a"
    assert RESULTS["rows"][2]["psnr"] == 26 and "updates" not in RESULTS


@pytest.mark.parametrize("per_item", [{"noisy|50": {"mse": [1, 2.1]}}, {"noisy|15": {"mse": [1, 2]}}, {}], ids=str)
def test_other_pictures_or_noise_are_refused(per_item):
    with pytest.raises(ValueError, match="other pictures or other noise"):
        report.merged(RESULTS, [], per_item, {"methods": []})


def test_rows_without_sigma_and_figures_in_lists():
    results = {"per_item": {"photos|noisy|75": [1, 2], "photos|unet|75": [3, 4]},
               "rows": [{"method": "unet", "noise": noise, "psnr": 26} for noise in ("75", "jpeg")]}
    rows = [{"method": "unet", "noise": noise, "psnr": 27} for noise in ("75", "jpeg")]
    new = {"photos|noisy|75": [1, 2], "photos|unet|75": [5, 6]}
    assert report.merged(results, rows, new, {"methods": ["unet"]})["rows"] == rows
    with pytest.raises(ValueError, match="other noise"):
        report.merged(results, rows, new | {"photos|noisy|75": [1, 3]}, {"methods": ["unet"]})


def test_what_was_not_measured_is_no_update():
    with pytest.raises(ValueError, match="no checkpoint unett"):
        report.merged(RESULTS, RESULTS["rows"][:1], {"noisy|50": {"mse": [1, 2]}}, {"methods": ["noisy", "unett"]})
