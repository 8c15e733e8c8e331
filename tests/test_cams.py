"""The measurements of lab/report_cams.py: figures by their definitions, interventions that touch what they name."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from helpers.cam import layers_of
from helpers.data import Sample, open_dataset
from helpers.models import UNet
from helpers.project import results
from lab import cam_interventions as cuts
from lab import cam_measures as measures
from lab import report_cams as report


@pytest.fixture(scope="module")
def samples():
    dataset = open_dataset("test", photos=False, length=20)
    return [sample for sample in (dataset[i] for i in range(len(dataset))) if sample.mask.any()][:3]


def test_layers_are_measured_with_every_method(samples):
    columns = measures.measure_layers(samples[:2], UNet(4).eval(), ["encoder 3"], list(measures.FROM_FEATURES), "")
    assert set(columns) == {f"encoder 3|{method}" for method in measures.FROM_FEATURES}
    assert all(len(values) == 2 for column in columns.values() for values in column.values())
    assert all(0 <= auc <= 1 for column in columns.values() for auc in column["auc"])


def test_the_oracle_beats_the_filters_and_the_blob(samples):
    columns = measures.measure_controls(samples, "")
    mean = {name: np.mean(values["auc"]) for name, values in columns.items()}
    assert mean["picture|oracle 14 x 14"] == max(mean.values()) > 0.95
    assert mean["picture|centre blob"] < mean["picture|sato"]


def test_sign_rules_give_the_same_auc_or_its_complement(samples):
    columns = measures.measure_signs(samples[:1], UNet(4).eval(), "")
    for rule in measures.SIGN_RULES:
        auc, either = (columns[f"encoder 2|EigenCAM|{word}"][0] for word in (rule, "either"))
        assert auc == pytest.approx(either, abs=1e-3) or 1 - auc == pytest.approx(either, abs=1e-3)


def test_the_map_adds_to_the_filters_what_it_knows(samples):
    masks = [sample.mask.numpy().astype(np.float32) for sample in samples]
    found = measures.measure_evidence(samples, samples, masks, masks)
    assert np.mean(found["filters and map"]) > 0.99 > np.mean(found["filters"])


def test_cells_are_those_of_the_highest_scores():
    score = np.arange(196.0)
    assert np.flatnonzero(cuts.cells_mask(score, 5)).tolist() == [191, 192, 193, 194, 195]


def test_choices_by_the_mask_take_the_crack_and_then_what_is_near():
    mask = torch.zeros(224, 224, dtype=torch.bool)
    mask[100:104, 64:128] = True
    sample = Sample(torch.rand(3, 224, 224), torch.rand(3, 224, 224), mask, True, "a", "a", "a", "a", 50.0)
    score = cuts.choices(sample, {"map": np.zeros((28, 28))}, np.random.default_rng(0))["mask"]
    rows, columns = np.nonzero(cuts.cells_mask(score, 4).numpy())
    assert set(rows) == {6} and sorted(columns) == [4, 5, 6, 7]
    rows, _ = np.nonzero(cuts.cells_mask(score, 20).numpy())
    assert rows.min() >= 4 and rows.max() <= 8


def test_features_are_zero_at_the_cells_and_hooks_are_gone():
    model, cells = UNet(4).eval(), torch.zeros(1, 14, 14, dtype=torch.bool)
    cells[0, 3, 4] = True
    layer, seen = layers_of(model)["encoder 3"], []
    with cuts.zeroed(layer, cells):
        model.encoder[2].register_forward_hook(lambda *call: seen.append(call[-1]))
        model(torch.rand(1, 3, 112, 112))
    seen = seen[0][0]  # (C, 28, 28)
    assert (seen[:, 6:8, 8:10] == 0).all() and (seen[:, :6] != 0).any()
    layer._forward_hooks.clear()


def test_errors_are_of_the_zone_and_of_the_rest():
    mask = torch.zeros(32, 32, dtype=torch.bool)
    mask[16] = True
    clean = torch.full((3, 32, 32), 0.5)
    sample = Sample(clean, clean, mask, True, "a", "a", "a", "a", 50.0)
    denoised = clean.clone()
    denoised[:, 13:20] += 0.1
    whole, zone, rest = (values[0] for values in cuts.zone_errors(denoised[None], sample))
    assert zone == pytest.approx(0.01, rel=1e-4) and rest == 0 and whole == pytest.approx(0.01 * 7 / 32, rel=1e-4)


def test_random_weights_from_the_top_change_the_map(samples):
    torch.manual_seed(1)
    rows = cuts.sanity(samples[:2], cuts.randomised_unets(UNet(4).eval()), "encoder 2")
    assert rows[0]["randomised"] == "trained" and rows[0]["spearman"] == pytest.approx(1)
    before, last = rows[-3], rows[-1]  # encoder 3 above the layer, encoder 1 below it
    assert before["spearman"] == pytest.approx(1) and last["spearman"] < 0.999


def test_rows_merge_the_drawn_kinds_and_weigh_sources_alike(samples):
    columns = {"auc": [0.5, 0.7, 0.9]}
    rows = report.rows_of([report.tiles_of(samples, columns, set="built-in")], "set")
    assert rows["source"].iloc[-1] == "mean" and set(rows["source"]) <= {"drawn", "photo-texture", "mean"}
    assert rows["auc"].iloc[-1] == pytest.approx(rows["auc"][:-1].mean(), abs=1e-4)


def test_the_stored_rows_and_differences_follow_from_the_tiles():
    items, key = results("cams_items"), ["set", "sigma", "network", "layer", "method", "source"]
    found = report.rows_of([items.assign(set="photos", sigma=50)], *key[:-1]).set_index(key)
    stored = results("cams").set_index(key).loc[found.index]
    np.testing.assert_allclose(found[["n", "auc"]], stored[["n", "auc"]], rtol=1e-9)
    best = results("settings").query("table == 'cams' and setting == 'best'")["value"].item()
    differences, stored = report.differences(items, best), results("cams_differences")
    pd.testing.assert_frame_equal(differences[list(stored)], stored.query("figure == 'auc'"), rtol=1e-9)


def test_a_small_report(tmp_path, monkeypatch):
    wanted = {name: sorted(results(name)) for name in results("provenance")["table"] if name.startswith("cams")}
    (tmp_path / "results").mkdir()
    monkeypatch.setenv("DENOISE_DATA", str(tmp_path))
    tiles = [Sample(None, None, None, True, str(i), str(i), str(i), "wall" if i < 5 else "road", 50.0)
             for i in range(8)]
    rng = np.random.default_rng(0)

    def columns(*keys):
        return {key: {figure: rng.random(8).tolist() for figure in measures.FIGURES} for key in keys}
    maps = {("photos", 50, "control"): columns("picture|sato", "picture|darkness", "picture|oracle 14 x 14"),
            ("photos", 50, "student"): columns("block 5|EigenCAM"),
            ("photos", 15, "student"): columns("block 5|EigenCAM")}
    cut = {"none": [[1.0, 2.0, 1.0]] * 8} | {f"{{}}|{how}|5": [[1.2, 2.0, 1.0]] * 8
                                             for how in ("map", "random 0", "random 1")}
    parts = {"maps": maps, "gradients": {("photos", 50, "student"): columns("block 5|GradCAM, mean")},
             "signs": {("test", "student"): {"block 5|EigenCAM|auto": [0.5] * 8}},
             "sanity": [{"network": "student", "randomised": "trained", "layer": "block 5", "n": 8, "spearman": 1.0,
                         "auc": 0.9}],
             "settings": {"best": "ours", "train": {"ours": [0.8] * 8},
                          "columns": {("photos", 50): columns("ours", "mean map")},
                          "iou": {"ours": (1.5, [0.25] * 8)},
                          "evidence": {"filters": [0.4] * 8, "filters and map": [0.5] * 8}},
             "interventions": {name: {key.format(what): value for key, value in cut.items()}
                               for name, what in (("tokens", "mean"), ("features", "bottleneck"))}}
    work = SimpleNamespace(samples=lambda which, sigma=50, split="test": tiles, digests={"student": "abc"},
                           networks={"teacher": SimpleNamespace(name="tiny")})
    report.collate(work, parts)
    assert {name: sorted(results(name)) for name in wanted} == wanted
    rows = results("cams").set_index(["sigma", "network", "layer", "method", "source"])
    auc = maps["photos", 15, "student"]["block 5|EigenCAM"]["auc"]
    assert rows.loc[(15, "student", "block 5", "EigenCAM", "wall"), "auc"] == pytest.approx(np.mean(auc[:5]), rel=1e-3)
    differences = results("cams_differences").set_index(["b", "source"])
    assert list(differences.index[:4]) == [("control|picture|sato", "mean"), ("control|picture|darkness", "mean"),
                                           ("setting|mean map", "mean"), ("student|block 5|EigenCAM", "mean")]
    assert differences.at[("filters", "mean"), "difference"] == pytest.approx(0.1)
    assert np.isnan(differences.at[("control|picture|sato", "road"), "low"])  # three photographs
    found = results("cams_interventions").query("how == 'map' and figure == 'mse'").set_index("layer")
    assert found["percent"].to_dict() == {"tokens": 20, "bottleneck": 20} and set(found["random_percent"]) == {0}
    assert found["replacement"].to_dict() == {"tokens": "mean", "bottleneck": "zero"}
    assert results("cams_iou")["threshold"].unique().tolist() == [1.5]
    settings = results("settings").set_index("setting")["value"]
    assert settings.to_dict() == {"teacher": "tiny", "best": "ours", "sha256 of student": "abc"}


def test_interventions_compare_with_nothing_and_with_random_cells():
    items = [Sample(None, None, None, True, str(i), str(i), str(i), "a", 50.0) for i in range(9)]
    base = [[1.0, 2.0, 1.0]] * 9
    columns = {"none": base, "mean|map|5": [[1.2, 3.0, 1.0]] * 9, "mean|random 0|5": [[1.0, 2.0, 1.0]] * 9,
               "mean|random 1|5": [[1.2, 2.0, 1.2]] * 9}
    rows = {(row["how"], row["figure"]): row for _, row in cuts.intervention_rows(columns, items)}
    assert rows["map", "mse"]["percent"] == pytest.approx(20)
    assert rows["map", "mse"]["random_percent"] == pytest.approx(10)
    assert rows["map", "mse_crack"]["percent"] == pytest.approx(50)
    assert rows["random", "mse"]["percent"] == pytest.approx(10)
