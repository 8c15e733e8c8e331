"""The loss experiments: the plan, the training-free rivals, the curves."""

import numpy as np
import pytest
import torch

from helpers.data import Sample
from helpers.losses import CamWeightedLoss, RegionalSharpnessLoss
from lab import report_losses as report
from lab import retrain

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
    full = columns(0.01, 0.6) | {"sharpness": [0.5] * 18, "sharpness_clean": [1.0] * 18, "ssim": [0.9] * 18}
    rows = report.rows_of("pixel", full, columns(0.01, 0.5), LABELS, run="pixel-0.4-0")
    assert [row["source"] for row in rows] == ["a", "b", "mean"]
    assert rows[-1]["psnr"] == pytest.approx(20) and rows[-1]["gap"] == pytest.approx(0.2)
    assert rows[-1]["rise"] == pytest.approx(0) and rows[0]["sharpness"] == 0.5 and rows[0]["legibility"] is None
