"""Tables about denoisers: rows from tiles, and some methods put into what is there, where images and noise agree."""

import numpy as np
import pandas as pd
import pytest

from helpers.data import Item
from helpers.project import results
from lab import report
from lab.aggregate import item_rows, mean_of_sources, source_rows
from lab.surface_stats import inside, passed
from lab.tables import save_tables

ITEMS = [Item(f"{source}-{i}", f"{source}-{i}", f"{source}-{i}", source, True) for source in ("wall", "road")
         for i in range(2)]
MADE = {"command": "python -m lab.report photos", "revision": "a", "seed": 0, "date": "2026-01-01", "machine": "some"}
NOTE = {**MADE, "command": "python -m lab.report photos --methods unet new --into", "revision": "b"}
COLUMNS = [list(results(name)) for name in ("synthetic", "synthetic_items")]


@pytest.mark.parametrize("name", ["photos", "synthetic"])
def test_rows_of_denoisers_are_the_means_of_their_tiles(name, same_rows):
    same_rows(report.denoiser_rows(results(f"{name}_items")), name, "method source sigma")


def test_differences_of_networks_follow_from_the_tiles():
    found, stored = pd.DataFrame(report.differences(results("photos_items"))), results("photos_differences")
    pd.testing.assert_frame_equal(found[list(stored)], stored, rtol=1e-9)


def test_rows_stand_as_they_are_stored():
    rows = report.denoiser_rows(results("photos_items").query("method == 'unet' and sigma == 50"))
    assert list(rows) == list(results("photos"))
    assert list(rows["source"]) == ["cracknj156", "sutcrack", "uavcrack", "mean"]


def test_a_source_without_cracks_has_no_figure_there_and_neither_has_the_mean():
    items = item_rows(ITEMS, {"mse": [0.01, 0.1, 0.001, 0.001], "mse_crack": [0.5, np.nan, None, None],
                              "legibility": [None] * 4}, method="x")
    rows = source_rows(items, ["method"]).set_index("source")
    assert rows["n"].to_dict() == {"wall": 2, "road": 2, "mean": 4}
    assert rows["mse"].to_dict() == pytest.approx({"wall": 0.055, "road": 0.001, "mean": 0.028})
    assert rows.at["wall", "mse_crack"] == 0.5 and rows["mse_crack"].isna().tolist() == [False, True, True]
    assert rows["legibility"].isna().all()
    assert mean_of_sources(items["mse"], items) == mean_of_sources(items["mse"], ITEMS) == pytest.approx(0.028)


def test_a_kind_passes_where_its_median_is_inside_a_source():
    table = pd.DataFrame([("drawn", "sand", "contrast", 0.0, 0.5, 1.0), ("photos", "wall", "contrast", 0.4, 0.6, 0.7),
                          ("photos", "road", "contrast", 0.6, 0.7, 0.8)],
                         columns=["set", "source", "figure", "low", "median", "high"])
    assert inside(table) == {("sand", "contrast"): ["wall"]} and passed(table)
    assert not passed(table.replace({0.5: 0.9}))
    assert passed(results("surfaces"))


# Some methods put into what is there ---------------------------------------------------------------------------------


def measured(sigma=50, **errors):
    """Return the tables of methods, each with the given MSE of four tiles."""
    items = pd.concat([item_rows(ITEMS, {"mse": values}, method=method, sigma=sigma)
                       for method, values in errors.items()])
    return {"photos": source_rows(items, ["method", "sigma"]), "photos_items": items}


@pytest.fixture
def stored(tmp_path, monkeypatch):
    """A data folder with results of three methods at sigma 50, one at 25, and filters of two sets."""
    (tmp_path / "results").mkdir()
    monkeypatch.setenv("DENOISE_DATA", str(tmp_path))
    first, other = measured(noisy=[1, 2, 3, 4], unet=[4, 4, 4, 4], conv=[5, 5, 5, 5]), measured(25, unet=[3, 3, 3, 3])
    filters = [{"set": which, "sigma": 50, "method": "tv", "arguments": '{"weight": 0.7}'} for which in "ab"]
    save_tables({name: pd.concat([first[name], other[name]]) for name in first} | {"filters": filters}, MADE)
    return tmp_path


def test_only_what_was_measured_again_is_replaced(stored):
    save_tables(measured(noisy=[1, 2, 3, 4], unet=[2, 2, 2, 2], new=[1, 1, 1, 1])
                | {"filters": [{"set": "a", "sigma": 50, "method": "tv", "arguments": "{}"}]}, NOTE, ["unet", "new"])
    means = results("photos").query("source == 'mean'").set_index(["method", "sigma"])["mse"]
    assert means.to_dict() == {("conv", 50): 5, ("unet", 25): 3, ("noisy", 50): 2.5, ("unet", 50): 2, ("new", 50): 1}
    items = results("photos_items")
    assert len(items) == 4 * 5 and set(items.query("method == 'unet' and sigma == 50")["mse"]) == {2}
    assert results("filters").set_index("set")["arguments"].to_dict() == {"a": "{}", "b": '{"weight": 0.7}'}
    order = list(dict.fromkeys(results("photos")["method"]))
    assert order == ["noisy", "unet", "conv", "new"]  # in their places, so that git shows only what changed
    made = results("provenance").query("table == 'photos'")
    assert list(made["revision"]) == ["a", "b"] and list(made["methods"].fillna("all")) == ["all", "unet new"]


def test_measured_anew_the_old_rows_and_their_origin_go(stored):
    save_tables(measured(noisy=[1, 2, 3, 4], unet=[2, 2, 2, 2]), NOTE, photos={"tiles": 4})
    assert set(results("photos")["method"]) == {"noisy", "unet"} and set(results("photos")["sigma"]) == {50}
    assert list(results("provenance").query("table == 'photos'")["revision"]) == ["b"]
    assert list(results("provenance").query("table == 'filters'")["revision"]) == ["a"]
    save_tables({"seconds": [{"notebook": "01", "seconds": 2.0}]}, MADE, seconds={"live": 20.0})
    save_tables({"seconds": [{"notebook": "01", "seconds": 3.0}]}, MADE, photos={"best": "a, 3"})
    assert results("settings").to_numpy().tolist() == [["photos", "best", "a, 3"], ["seconds", "live", "20.0"]]
    assert list(results("provenance")["table"]) == ["photos", "photos_items", "filters", "seconds"]  # in their places


@pytest.mark.parametrize("again", [
    measured(noisy=[1, 2.1, 3, 4], unet=[2, 2, 2, 2]), measured(15, noisy=[1, 2, 3, 4], unet=[2, 2, 2, 2]),
    measured(unet=[2, 2, 2, 2]),
    {name: rows.drop(index=3) if name == "photos_items" else rows
     for name, rows in measured(noisy=[1, 2, 3, 4], unet=[2, 2, 2, 2]).items()}],
    ids=["other noise", "other sigma", "no noise", "fewer tiles"])
def test_other_pictures_or_noise_are_refused_and_nothing_is_written(stored, again):
    before = {path.name: path.read_bytes() for path in (stored / "results").iterdir()}
    with pytest.raises(ValueError, match="other pictures or other noise"):
        save_tables(again, NOTE, ["unet"])
    assert before == {path.name: path.read_bytes() for path in (stored / "results").iterdir()}


def test_the_last_digit_of_the_segmenter_may_differ(stored):
    save_tables(measured(noisy=[1.0002, 2, 3, 4], unet=[2, 2, 2, 2]), NOTE, ["unet"])
    assert len(results("photos_items")) == 4 * 4


def test_what_was_not_measured_is_no_update(stored):
    with pytest.raises(ValueError, match="no checkpoint unett"):
        save_tables(measured(noisy=[1, 2, 3, 4]), NOTE, ["noisy", "unett"])


def test_two_rows_of_the_same_name_are_refused(stored):
    with pytest.raises(ValueError, match="'photos' have the same key.*'unet'"):
        save_tables({"photos": pd.concat([measured(unet=[2, 2, 2, 2])["photos"]] * 2)}, MADE)


def test_a_report_writes_its_tables(stored, monkeypatch, same_rows):
    monkeypatch.delenv("CRACK_PHOTOS", raising=False)
    few = report.open_dataset("test", photos=False, length=6)
    monkeypatch.setattr(report, "open_dataset", lambda *words, **options: few)
    monkeypatch.setattr(report, "chosen_parameters", lambda sigma, only: {"gaussian": {"kernel": 3, "blur": 0.6}})
    report.report("synthetic", False, sigmas=(50,))
    assert set(results("synthetic")["method"]) == {"noisy", "gaussian"}
    assert [list(results(name)) for name in ("synthetic", "synthetic_items")] == COLUMNS
    same_rows(report.denoiser_rows(results("synthetic_items")), "synthetic", "method source sigma")
    assert results("filters").query("set == 'built-in'")["arguments"].tolist() == ['{"kernel": 3, "blur": 0.6}']
    assert set(results("provenance").query("command == 'python -m lab.report synthetic'")["table"]) == {
        "synthetic", "synthetic_items", "filters"}
