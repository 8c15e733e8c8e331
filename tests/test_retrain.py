"""The loss experiments: the plan, the training-free rivals, the curves."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from helpers.checkpoints import CheckpointError, load, read_card, save
from helpers.data import Crops, Item, Sample
from helpers.losses import CamWeightedLoss, RegionalSharpnessLoss
from helpers.models import UNet
from helpers.project import results
from lab import report_losses as report
from lab import retrain
from lab.aggregate import labels_of
from lab.train import TrainingData

LABELS = {"group": [str(i) for i in range(18)], "photo": [str(i) for i in range(18)], "source": ["a"] * 9 + ["b"] * 9}


def columns(mse, aligned):
    return {"mse": [mse] * 18, "aligned_numerator": [aligned] * 18, "aligned_denominator": [1.0] * 18}


def test_the_plan_names_every_run_once_and_has_its_controls():
    names = [run.name for run in retrain.PLAN]
    assert len(names) == len(set(names))
    assert {f"cam{control}-{a}-0" for control in ("", "_shuffled", "_random", "_contrast")
            for a in (0.1, 0.2, 0.4)} <= set(names)
    assert {"mse-0", "mse-1", "mse-2", "mse-0-unet", "mse-0-bilinear", "sorted24-0.4-0"} <= set(names)
    assert all(run.term in retrain.TERMS and run.start in retrain.STARTS for run in retrain.PLAN)
    assert {term for terms in report.SHIPPED.values() for term in terms} <= {run.term for run in retrain.PLAN}


def test_the_shipped_run_closes_most_of_the_gap_within_ten_per_cent():
    def run(term, a, mse, sharp, seed=0):
        columns = {"mse": [mse] * 2, "aligned_numerator": [sharp] * 2, "aligned_denominator": [1.0] * 2}
        return {"name": f"{term}-{a}-{seed}", "tested": {"valid": columns},
                "run": {"term": term, "a": a, "seed": seed, "start": "hybrid"}}
    runs = [run("sorted", 0.1, 1.02, 0.5), run("sorted", 0.2, 1.09, 0.6), run("sorted", 0.4, 1.2, 0.8),
            run("sorted", 0.2, 1.01, 0.9, seed=1), run("pixel", 0.4, 1.05, 0.7), run("cam", 0.4, 1.0, 0.4)]
    labels = {"group": ["a", "b"], "photo": ["a", "b"], "source": ["x", "x"]}
    base = run("mse", 0, 1.0, 0.4)["tested"]
    shipped = report.to_ship({r["name"]: r for r in runs}, base, labels, "cam")
    assert shipped == {"hybrid_regional": "pixel-0.4-0", "hybrid_cam": "cam-0.4-0"}
    assert report.to_ship({r["name"]: r for r in runs}, base, labels, "sorted")["hybrid_regional"] == "sorted-0.2-0"


def test_terms_are_what_they_are_called():
    assert isinstance(retrain.TERMS["pixel"](), RegionalSharpnessLoss) and retrain.TERMS["pixel"]().match == "pixel"
    shuffled = retrain.TERMS["cam_shuffled"]()
    assert isinstance(shuffled, CamWeightedLoss) and shuffled.control == "shuffled"


def test_a_run_is_trained_once_and_refused_on_other_images(tmp_path, monkeypatch, capsys):
    """Its weights have a card, its figures lie beside; started again it trains nothing, and never mixes two folders."""
    monkeypatch.setenv("DENOISE_DATA", str(tmp_path))
    monkeypatch.setenv("DENOISE_DEVICE", "cpu")
    torch.manual_seed(0)
    save(UNet(2, stages=1), "unet_start", {"data": "nothing"})
    monkeypatch.setattr(retrain, "BUDGET", retrain.replace(retrain.BUDGET, steps=8, batch_size=2, crop=32))
    monkeypatch.setattr(retrain, "test", lambda model: {"mse": [1.0]})

    def images(seed):
        image = (np.random.default_rng(seed).integers(0, 256, (40, 40, 3), np.uint8), None)
        monkeypatch.setattr(retrain, "training_data", lambda recipe: TrainingData(
            Crops({"a": [image]}, recipe.steps * recipe.batch_size, recipe.crop, recipe.sigma, recipe.seed), None,
            f"a of {seed}", []))
    images(0)
    run = retrain.Run("pixel", 0.4, start="unet")
    retrain.train_run(run)
    name = f"losses/{run.name}-weights"
    card, path = read_card(name), retrain.folder() / f"{run.name}.json"
    found = json.loads(path.read_text())
    assert card["run"] == found["run"] == {"term": "pixel", "a": 0.4, "seed": 0, "start": "unet"}
    assert card["start_sha256"] == found["start"] == read_card("unet_start")["sha256"]
    assert card["history"] == found["history"] and card["history"][-1]["step"] == 8 and card["data"] == "a of 0"
    assert (card["architecture"], card["arguments"]) == ("UNet", {"width": 2, "stages": 1})
    assert card["budget"] == {"steps": 8, "batch_size": 2, "crop": 32, "lr": 3e-4}
    weights, before = load(name).state_dict(), path.read_bytes()
    assert not torch.equal(weights["head.weight"], load("unet_start").state_dict()["head.weight"])

    monkeypatch.setattr(retrain, "fit_recipe", lambda *words, **options: pytest.fail("trained again"))
    retrain.train_run(run)
    images(1)
    with pytest.raises(CheckpointError, match="pixel-0.4-0-unet.json holds another run, with fingerprint"):
        retrain.train_run(run)
    images(0)
    save(UNet(2, stages=1), "unet_start", {"data": "others"})
    with pytest.raises(CheckpointError, match="pixel-0.4-0-unet.json holds another run, with start_sha256"):
        retrain.train_run(run)
    assert path.read_bytes() == before and read_card(name) == card


def test_training_free_rivals():
    clean = torch.zeros(3, 64, 64)
    clean[:, :, 32:] = 1
    sample = Sample(clean, clean + 0.5, torch.zeros(64, 64, dtype=torch.bool), False, "a", "a", "a", "a", 50.0)
    edge = report.sharpened(clean, sample, "unsharp", 0.5, 1)
    assert edge[0, 20, 32] > 1.1 and edge[0, 20, 31] < -0.1 and edge[0, 20, 5] == pytest.approx(0, abs=1e-6)
    assert torch.allclose(report.sharpened(clean, sample, "blend", 0.1), clean + 0.05)
    noise = report.sharpened(clean, sample, "noise", 4) - clean
    assert 255 * noise.std().item() == pytest.approx(4, rel=0.05)
    assert torch.equal(report.sharpened(clean, sample, "noise", 4) - clean, noise), "the same noise every time"


def test_a_point_of_a_curve():
    rise, gap = report.point(columns(1.05, 0.75), columns(1.0, 0.5), LABELS)
    assert rise == pytest.approx(5) and gap == pytest.approx(0.5)


def test_a_source_without_a_gap_does_not_count():
    base = columns(1.0, 0.5)
    base["aligned_numerator"][9:] = [0.95] * 9
    assert report.point(columns(1.0, 0.75), base, LABELS)[1] == pytest.approx(0.5)


@pytest.mark.parametrize("points, rise, wanted", [
    ([(0, 0), (4, 0.4)], 2, 0.2), ([(0, 0), (1, 0.3), (4, 0.1)], 2, 0.3), ([(0, 0), (1, 0.3)], 10, 0.3),
    ([(0, 0), (-1, 0.2)], 2, 0.2), ([(0, 0)], 2, 0)])
def test_what_a_curve_reaches(points, rise, wanted):
    assert report.at(points, rise) == pytest.approx(wanted)


def test_draws_of_curves_are_alike_for_equal_curves():
    rng = np.random.default_rng(0)
    base = columns(1.0, 0.5)
    base["mse"] = rng.uniform(0.9, 1.1, 18)
    curve = [{**columns(0, 0.7), "mse": base["mse"] * 1.01}]
    found = report.drawn_curves({"x": curve, "y": curve}, base, LABELS, resamples=20)
    np.testing.assert_allclose(found["x"][2], found["y"][2])
    np.testing.assert_allclose(found["x"][2], 0.4, atol=1e-6)


def test_rows_have_the_sources_and_their_mean():
    full = columns(0.01, 0.6) | {"sharpness": [0.5] * 18, "sharpness_clean": [1.0] * 18, "ssim": [0.9] * 18,
                                       "legibility": [None] * 18, "auc bottleneck": [None] * 9 + [0.5] * 9}
    rows = report.rows_of("pixel", full, columns(0.01, 0.5), LABELS, run="pixel-0.4-0").set_index("source")
    assert list(rows.index) == ["a", "b", "mean"]
    assert rows.at["mean", "psnr"] == pytest.approx(20) and rows.at["mean", "gap"] == pytest.approx(0.2)
    assert rows.at["mean", "rise"] == pytest.approx(0) and np.isnan(rows.at["a", "rise"])
    assert rows["auc bottleneck"].isna().tolist() == [True, False, False] and rows.at["mean", "auc bottleneck"] == 0.5
    assert rows.at["a", "sharpness"] == 0.5 and rows["legibility"].isna().all() and set(rows["run"]) == {"pixel-0.4-0"}


def test_a_source_without_a_gap_has_no_share_of_it_and_does_not_count_in_the_mean():
    base = columns(0.01, 0.5) | {"aligned_numerator": [0.5] * 9 + [0.95] * 9}
    full = columns(0.01, 0.6) | {"sharpness": [0.5] * 18, "sharpness_clean": [1.0] * 18, "ssim": [0.9] * 18}
    rows = report.rows_of("pixel", full, base, LABELS).set_index("source")
    assert rows["gap"].to_dict() == {"a": pytest.approx(0.2), "b": pytest.approx(np.nan, nan_ok=True), "mean": 0.2}


@pytest.fixture(scope="module")
def tiles():
    """{(set, run): rows of `losses_items`}."""
    return dict(list(results("losses_items").groupby(["set", "run"])))


@pytest.mark.parametrize("which, run, against", [
    ("photos", "aligned-0.2-0", "mse-0"), ("built-in", "cam-0.4-0", "cam_shuffled-0.4-0")])
def test_stored_differences_follow_from_the_tiles(tiles, which, run, against):
    mine, other = (tiles[which, name].to_dict("list") for name in (run, against))
    found = report.paired(mine, other, "mse", labels_of(tiles[which, run]))
    stored = results("losses_differences").query("set == @which and run == @run and against == @against").set_index(
        "figure").loc["mse", list(found)[1:]]
    assert found.pop("figure") == "mse" and found == pytest.approx(stored.to_dict(), rel=1e-9)


def test_stored_rows_follow_from_the_tiles(tiles):
    stored = results("losses").query("source == 'mean' and run.notna()").set_index(["set", "run"])
    for (which, run), row in stored.iterrows():
        part, base = tiles[which, run], tiles[which, "mse-0"]
        labels = labels_of(part)
        found, plain = (report.by_source(each["mse"], labels) for each in (part, base))
        psnr = report.by_source(-10 * np.log10(part["mse"]), labels)
        assert row["mse"] == pytest.approx(found.mean(), rel=1e-3)
        assert row["psnr"] == pytest.approx(psnr.mean(), rel=1e-3)
        assert row["rise"] == pytest.approx(100 * (found.mean() / plain.mean() - 1), rel=1e-3, abs=1e-3)


def test_what_is_reached_at_a_rise_follows_from_the_rows():
    rows = results("losses").fillna({"seed": 0, "start": "hybrid"}).query(
        "source == 'mean' and seed == 0 and start == 'hybrid'")
    for row in results("losses_at_rise").itertuples():
        points = rows[(rows["set"] == row.set) & (rows["method"] == row.method)][["rise", "gap"]]
        points = [(0.0, 0.0), *points.itertuples(index=False, name=None)]
        assert report.at(points, row.rise) == pytest.approx(row.gap, abs=2e-4)


def test_a_small_report(tmp_path, monkeypatch):
    wanted = {name: list(results(name)) for name in (
        "losses", "losses_at_rise", "losses_differences", "losses_history", "losses_items")}
    (tmp_path / "results").mkdir()
    monkeypatch.setenv("DENOISE_DATA", str(tmp_path))
    rng = np.random.default_rng(0)

    def tested(mse, aligned):
        noise = rng.uniform(0.95, 1.05, 18)
        figures = {figure: [0.5] * 18 for figure in (*report.AVERAGED, *report.COMPARED, "residual_2", "residual_4",
                                                     "residual_8", "residual_16", "residual_32", "sharpness_clean")}
        return {name: columns(0, aligned) | figures | {"mse": list(mse * noise), "sharpness": [0.4] * 18}
                for name in ("photos", "valid")}

    def run(term, a, mse, aligned):
        history = [{"step": 50, "loss": 0.2, "lr": 0.1, "seconds": 1.0} | ({"mse": 0.1, term: 0.3} if a else {})]
        return {"name": f"{term}-{a:g}-0" if a else f"{term}-0", "tested": tested(mse, aligned), "history": history,
                "start": "digest", "data": "drawn", "run": {"term": term, "a": a, "seed": 0, "start": "hybrid"}}
    runs = [run("mse", 0.0, 0.01, 0.5), run("aligned", 0.2, 0.0102, 0.6), run("cam", 0.4, 0.0101, 0.52)]
    free = {name: {"noise": {2: tested(0.0105, 0.55)[name]}} for name in ("photos", "valid")}
    items = SimpleNamespace(items=[Item(*(LABELS[key][i] for key in ("photo", "photo", "group", "source")), True)
                                   for i in range(18)])
    for name, value in (("load_runs", {r["name"]: r for r in runs}), ("test_sets", {"photos": items}),
                        ("valid_set", items)):
        monkeypatch.setattr(report, name, lambda value=value: value)
    monkeypatch.setattr(report, "training_free", lambda digest: (free, 1))
    monkeypatch.setattr(report.checkpoints, "read_card", lambda name: {"budget": {"steps": 400}})
    shipped, winner = report.report()
    assert winner == "aligned" and shipped == {"hybrid_regional": "aligned-0.2-0", "hybrid_cam": "cam-0.4-0"}
    assert {name: sorted(results(name)) for name in wanted} == {name: sorted(there) for name, there in wanted.items()}
    rows = results("losses").query("source == 'mean'").set_index("method")
    assert rows.loc["aligned", ["run", "a", "rise", "gap"]].tolist() == [
        "aligned-0.2-0", 0.2, pytest.approx(2, abs=3), pytest.approx(0.2)]
    assert rows.at["noise", "strength"] == 2 and np.isnan(rows.at["noise", "seed"])
    assert ",0," in (tmp_path / "results" / "losses.csv").read_text().splitlines()[1]  # a whole number stays one
    history = results("losses_history").set_index("run")
    assert history.at["aligned-0.2-0", "term_value"] == 0.3 and np.isnan(history.at["mse-0", "term_value"])
    settings = results("settings").set_index("setting")["value"]
    assert (settings["winner"], settings["rival"], settings["steps"]) == ("aligned", "noise", "400")
    assert settings["run shipped as hybrid_cam"] == "cam-0.4-0"
