"""The tables of lab/report_comparison.py: rows from images, what is measured again, what cost what."""

import numpy as np
import pytest

from helpers.data import open_dataset
from helpers.models import UNet
from helpers.project import results
from lab import report_comparison as report
from lab.unseen import UNSEEN

COST = list(results("cost"))


def test_rows_of_unseen_noise_are_the_means_of_their_images(same_rows):
    same_rows(report.unseen_rows(results("unseen_items")), "unseen", "set noise method source")


@pytest.fixture(scope="module")
def samples():
    dataset = open_dataset("test", photos=False, length=None)
    return report.some(dataset, 1)


@pytest.fixture
def data(tmp_path, monkeypatch):
    (tmp_path / "results").mkdir()
    monkeypatch.setenv("DENOISE_DATA", str(tmp_path))
    return tmp_path


def test_a_sample_of_every_source_is_measured_under_every_noise(samples, data, monkeypatch):
    columns = {"unseen": ["method", "set", "noise", "source", "n", "psnr"],
               "unseen_items": ["set", "noise", "method", "name", "photo", "group", "source", "psnr"]}
    monkeypatch.setattr(report, "methods", lambda: [
        (name, {"half": part}, lambda noisy, part=part: noisy * part) for name, part in (("noisy", 1), ("half", 0.5))])
    items = report.unseen_items({"built-in": samples})
    assert list(items) == columns["unseen_items"] and list(report.unseen_rows(items)) == columns["unseen"]
    assert len(items) == 2 * len(UNSEEN) * len(samples) and np.isfinite(items["psnr"]).all()
    tile = items[(items["method"] == "noisy") & (items["noise"] == "camera") & (items["name"] == samples[0].name)]
    noisy = UNSEEN["camera"](samples[0].clean, samples[0].name)
    assert tile["psnr"].item() == pytest.approx(report.psnr(noisy, samples[0].clean), abs=1e-4)
    assert set(report.unseen_items({"built-in": samples}, {"half"})["method"]) == {"half"}


def test_legibility_of_clean_images_is_of_the_cracked_only(samples, monkeypatch, data):
    cracked = [sample for sample in samples if sample.mask.any()]
    monkeypatch.setattr(report, "reader", lambda: (None, "some"))
    monkeypatch.setattr(report, "measure_legibility", lambda image, mask, read: {"legibility": float(mask.any())})
    rows = report.clean_legibility(samples)
    assert list(rows) == ["source", "legibility"] and set(rows["legibility"]) == {1}
    assert list(rows["source"]) == [*dict.fromkeys(sample.source for sample in cracked), "mean"]


def test_cost_has_the_columns_that_are_stored(monkeypatch, data):
    monkeypatch.setattr(report, "checkpoint_names", lambda: ["conv", "unet"])
    monkeypatch.setattr(report, "load", lambda name: UNet(2))
    monkeypatch.setattr(report, "read_card", lambda name: {"sha256": "some"})
    monkeypatch.setattr(report, "large", lambda name: {"seconds_12mp": 1.5, "peak_mb_12mp": 7})
    rows = report.costs()
    assert list(rows) == COST and rows["peak_mb_12mp"].tolist()[1] == 7
