"""The measurements of lab/report_cams.py: figures by their definitions, interventions that touch what they name."""

import numpy as np
import pytest
import torch

from helpers.cam import layers_of
from helpers.data import Sample, open_dataset
from helpers.models import UNet
from lab import cam_interventions as cuts
from lab import cam_measures as measures
from lab import rows as cam_rows


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
    row = cam_rows.rows_of(columns, samples, set="built-in")[-1]
    assert row["source"] == "mean" and {r["source"] for r in cam_rows.rows_of(columns, samples)} <= {
        "drawn", "photo-texture", "mean"}


def test_loss_rows_compare_with_nothing_and_with_random_cells():
    items = [Sample(None, None, None, True, str(i), str(i), str(i), "a", 50.0) for i in range(9)]
    base = [[1.0, 2.0, 1.0]] * 9
    columns = {"none": base, "mean|map|5": [[1.2, 3.0, 1.0]] * 9, "mean|random 0|5": [[1.0, 2.0, 1.0]] * 9,
               "mean|random 1|5": [[1.2, 2.0, 1.2]] * 9}
    rows = {(row["how"], row["figure"]): row for row in cam_rows.loss_rows(columns, items, "replacement")}
    assert rows["map", "mse"]["percent"] == pytest.approx(20)
    assert rows["map", "mse"]["random_percent"] == pytest.approx(10)
    assert rows["map", "mse_crack"]["percent"] == pytest.approx(50)
    assert rows["random", "mse"]["percent"] == pytest.approx(10)
