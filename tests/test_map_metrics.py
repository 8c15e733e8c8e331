"""Maps against masks, their controls, and the paired intervals."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from helpers import metrics as MM
from lab import measures
from lab.intervals import Interval, holm, paired_bootstrap


def crack_picture(size=96, row=40, width=4):
    """A dark line on uneven ground with a little noise, and its mask."""
    mask = np.zeros((size, size), bool)
    mask[row : row + width] = True
    rng = np.random.default_rng(0)
    ground = 0.6 + 0.2 * np.linspace(-1, 1, size)[None, :, None] + rng.normal(0, 0.03, (size, size, 3))
    return np.clip(ground - 0.3 * mask[..., None], 0, 1).astype(np.float32), mask


def slow_auc(score, mask):
    positive, negative = score[mask], score[~mask]
    wins = [(p > n) + 0.5 * (p == n) for p in positive for n in negative]
    return sum(wins) / len(wins)


def slow_ap(score, mask):
    total = 0.0
    for p in score[mask]:
        total += np.count_nonzero(score[mask] >= p) / np.count_nonzero(score >= p)
    return total / mask.sum()


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 9999), st.integers(3, 8), st.integers(3, 8), st.booleans())
def test_auc_and_ap_equal_slow_loops(seed, height, width, ties):
    rng = np.random.default_rng(seed)
    score = (rng.integers(0, 4, (height, width)) if ties else rng.normal(size=(height, width))).astype(np.float32)
    mask = rng.random((height, width)) > 0.6
    mask[0, 0], mask[0, 1] = True, False
    assert MM.crack_auc(score, mask) == pytest.approx(slow_auc(score, mask))
    assert measures.crack_ap(score, mask) == pytest.approx(slow_ap(score, mask))
    assert MM.crack_auc(score, mask) == pytest.approx(roc_auc_score(mask.ravel(), score.ravel()))
    assert measures.crack_ap(score, mask) == pytest.approx(average_precision_score(mask.ravel(), score.ravel()))
    assert MM.crack_auc(-score, mask) == pytest.approx(1 - MM.crack_auc(score, mask))


@pytest.mark.parametrize("grid, size", [((14, 14), (224, 224)), ((7, 9), (50, 33))])
def test_maps_are_enlarged_as_torch_does(grid, size):
    raw = np.random.default_rng(0).normal(size=grid).astype(np.float32)
    batch = torch.from_numpy(raw)[None, None]
    wanted = torch.nn.functional.interpolate(batch, size, mode="bilinear", align_corners=False)
    np.testing.assert_allclose(MM.resize_map(raw, size), wanted[0, 0], atol=1e-5)


def test_pooling_is_the_mean_of_each_cell():
    raw = np.random.default_rng(0).normal(size=(28, 42)).astype(np.float32)
    wanted = raw.reshape(7, 4, 6, 7).mean((1, 3))
    np.testing.assert_allclose(measures.pool_to_grid(raw, (7, 6)), wanted, atol=1e-6)
    np.testing.assert_allclose(measures.pool_to_grid(raw, (5, 4)).mean(), raw.mean(), atol=1e-6)  # uneven cells too
    with pytest.raises(ValueError, match="no finer than the map, got 56 x 6 for 28 x 42"):
        measures.pool_to_grid(raw, (56, 6))


def test_oracle_is_the_ceiling_of_a_grid():
    mask = crack_picture()[1]
    grid = (12, 12)
    oracle = measures.oracle_ap(mask, grid)
    assert 0.3 < oracle < 1
    rng = np.random.default_rng(0)
    assert max(measures.crack_ap(rng.normal(size=grid), mask) for _ in range(20)) < oracle
    row = measures.evaluate_map(measures.pool_to_grid(mask, grid), mask)
    assert row["ap_over_oracle"] == pytest.approx(1) and row["patch_ap"] == pytest.approx(1)
    assert row["prevalence"] == pytest.approx(4 / 96)


def test_the_sign_counts_unless_the_oracle_takes_the_better():
    mask = crack_picture()[1]
    good, bad = (measures.evaluate_map(sign * measures.pool_to_grid(mask, (12, 12)), mask) for sign in (1, -1))
    assert good["auc"] > 0.9 and bad["auc"] < 0.1 and bad["ap"] < 0.1
    assert bad["auc_either"] == pytest.approx(good["auc"]) and bad["ap_either"] == pytest.approx(good["ap"])


@pytest.mark.parametrize("full", [False, True])
def test_masks_of_one_kind_give_nan(full):
    mask, raw = np.full((32, 32), full), np.random.default_rng(0).normal(size=(4, 4))
    assert math.isnan(MM.crack_auc(raw, mask)) and math.isnan(measures.crack_ap(raw, mask))
    assert math.isnan(measures.patch_ap(raw, mask)) and math.isnan(measures.legibility_ap(np.zeros((32, 32)), mask))
    row = measures.evaluate_map(raw, mask)
    assert all(math.isnan(row[key]) for key in row if key != "prevalence")


def test_constant_maps_are_chance():
    mask = crack_picture()[1]
    assert MM.crack_auc(np.ones((14, 14)), mask) == 0.5
    assert measures.crack_ap(np.ones((14, 14)), mask) == pytest.approx(mask.mean())


def test_patches_are_positive_from_five_percent_on():
    mask = np.zeros((40, 40), bool)
    mask[0, :5] = True  # 5 of 100 pixels of the first patch
    mask[10, :4] = True  # 4 of 100 of the one below
    raw = np.zeros((4, 4))
    raw[0, 0] = 1
    assert measures.patch_ap(raw, mask) == 1
    raw[1, 0] = 2
    assert measures.patch_ap(raw, mask) == 0.5
    assert measures.patch_ap(np.kron(raw, np.ones((10, 10))), mask, grid=(4, 4)) == 0.5


def test_iou_and_its_threshold():
    picture, mask = crack_picture()
    assert measures.crack_iou(mask.astype(float), mask, 0.5) == 1 and measures.crack_iou(1.0 - mask, mask, 0.5) == 0
    assert math.isnan(measures.crack_iou(np.zeros((4, 4)), np.zeros((4, 4), bool), 0.5))
    raw = MM.darkness_map(picture)
    fitted = measures.crack_iou(raw, mask, measures.fit_threshold([raw], [mask]))
    assert fitted > 0.5
    assert fitted > measures.crack_iou(raw, mask, float(np.median(raw)))
    with pytest.raises(ValueError, match="got 2 and 1"):
        measures.fit_threshold([raw, raw], [mask])


def test_filters_find_a_dark_line_and_not_a_bright_one():
    picture, mask = crack_picture()
    for control in (measures.sato_map, MM.darkness_map):
        assert control(picture).shape == mask.shape
        assert MM.crack_auc(control(picture), mask) > 0.95
        assert MM.crack_auc(measures.pool_to_grid(control(picture), (12, 12)), mask) > 0.9
        assert measures.crack_ap(control(1 - picture), mask) < 0.2
    assert measures.ridge_ap(picture, mask, side="outside") > 0.8


def test_centre_blob_and_mean_map():
    blob = measures.centre_blob((9, 15))
    assert np.unravel_index(blob.argmax(), blob.shape) == (4, 7) and blob[0, 7] == pytest.approx(math.exp(-2))
    np.testing.assert_allclose(blob, blob[::-1, ::-1])
    raw = np.random.default_rng(0).normal(size=(5, 5))
    np.testing.assert_allclose(measures.mean_map([raw, 100 * raw + 7]), (raw - raw.mean()) / raw.std(), atol=1e-5)
    assert np.isfinite(measures.mean_map([np.ones((3, 3))])).all()


@given(st.integers(2, 200), st.integers(0, 99))
def test_shuffled_maps_are_never_ones_own(n, seed):
    other = measures.other_tile(n, seed)
    assert sorted(other) == list(range(n)) and (other != np.arange(n)).all()


def test_legibility_leaves_out_the_edge():
    mask = np.zeros((60, 60), bool)
    mask[20:40] = True
    prob = mask.astype(np.float32)
    prob[17:20] = 1  # wrong only within 3 pixels of the edge, on both sides
    prob[20:23] = 0
    assert measures.legibility_ap(prob, mask) == 1
    assert measures.crack_ap(prob, mask) < 0.95
    assert measures.legibility_ap(prob, mask, side="outside") < 1
    prob[16] = 1
    assert measures.legibility_ap(prob, mask) < 1
    with pytest.raises(ValueError, match="one shape"):
        measures.legibility_ap(prob[:30], mask)
    with pytest.raises(ValueError, match="'both' or 'outside', got 'in'"):
        measures.legibility_ap(prob, mask, side="in")


def test_legibility_of_a_narrow_crack():
    mask = crack_picture(width=4)[1]
    assert math.isnan(measures.legibility_ap(mask.astype(float), mask))
    assert measures.legibility_ap(mask.astype(float), mask, side="outside") == 1


def test_crack_zone_is_a_disk_and_works_at_the_border():
    mask = np.zeros((12, 12), bool)
    assert not MM.crack_zone(mask).any()
    mask[0, 0] = True
    rows, columns = np.indices(mask.shape)
    np.testing.assert_array_equal(MM.crack_zone(mask, 3), rows**2 + columns**2 <= 9)


def test_map_errors():
    mask = crack_picture()[1]
    with pytest.raises(ValueError, match="finite, got 1 NaN"):
        MM.crack_auc(np.array([[0, np.nan]]), mask)
    with pytest.raises(ValueError, match=r"\(h, w\), got float64 \(1, 4, 4\)"):
        MM.crack_auc(np.zeros((1, 4, 4)), mask)
    with pytest.raises(ValueError, match="must be bool"):
        MM.crack_auc(np.zeros((4, 4)), mask.astype(float))
    assert MM.crack_auc(torch.zeros(4, 4), torch.from_numpy(mask)) == 0.5


@settings(deadline=None, max_examples=20)
@given(st.integers(8, 40), st.floats(-5, 5), st.integers(0, 99))
def test_a_constant_difference_has_no_width(n, difference, seed):
    b = np.random.default_rng(seed).normal(size=n)
    interval = paired_bootstrap(b + difference, b, group=np.arange(n) % 8, seed=seed)
    assert interval.difference == pytest.approx(difference, abs=1e-9)
    assert (interval.low, interval.high) == pytest.approx((difference, difference), abs=1e-9)


def test_pairs_matter():
    rng = np.random.default_rng(0)
    b = rng.normal(0, 10, 100)
    interval = paired_bootstrap(b + 1 + rng.normal(0, 0.1, 100), b)
    assert 0.95 < interval.low < interval.high < 1.05
    assert interval.p == pytest.approx(2 / 2001)


def test_the_interval_covers_the_truth():
    """Twenty groups of five tiles with group effects: about 95 % of intervals hold the truth; tiles alone far fewer."""
    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(20), 5)
    hits = {"groups": 0, "tiles": 0}
    for seed in range(100):
        difference = rng.normal(0, 1, 20)[group] + rng.normal(0, 0.3, 100)
        for name, labels in (("groups", group), ("tiles", None)):
            interval = paired_bootstrap(difference, np.zeros(100), labels, resamples=300, seed=seed)
            hits[name] += interval.low <= 0 <= interval.high
    assert hits["groups"] >= 86 and hits["tiles"] <= 75


def test_two_stages_have_the_variance_of_theory():
    """Equal groups: variance of the mean = variance of group means / G + mean variance within / (G n)."""
    values = np.random.default_rng(0).normal(size=(10, 4)) + 0.1 * np.arange(10)[:, None]
    group = np.repeat(np.arange(10), 4)
    interval = paired_bootstrap(values.ravel(), np.zeros(40), group, resamples=20000, level=0.6827)
    theory = math.sqrt(values.mean(1).var() / 10 + values.var(1).mean() / 40)
    assert (interval.high - interval.low) / 2 == pytest.approx(theory, rel=0.05)


def test_few_groups_and_few_photographs():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 24))
    assert paired_bootstrap(a, b, group=np.arange(24) % 8).unit == "groups"
    few = paired_bootstrap(a, b, group=np.arange(24) % 7, photo=np.arange(24) % 14)
    assert few.unit == "photographs, within this site" and few.photos == 14 and few.groups == 7 and few.low < few.high
    as_groups = paired_bootstrap(a, b, group=np.arange(24) % 14)  # the same draws, called by another name
    assert (few.low, few.high) == pytest.approx((as_groups.low, as_groups.high), rel=0.15)
    none = paired_bootstrap(a, b, group=np.zeros(24), photo=np.arange(24) % 4)
    assert none.unit == "no interval: 4 photographs, fewer than 5"
    assert none.difference == pytest.approx((a - b).mean()) and np.isnan([none.low, none.high, none.p]).all()
    assert math.isnan(paired_bootstrap(a[:4], b[:4]).low) and not math.isnan(paired_bootstrap(a[:5], b[:5]).low)


def test_sources_weigh_equally_and_keep_their_own_rule():
    source = ["many"] * 90 + ["few"] * 10
    a = np.where(np.array(source) == "many", 1.0, 3.0)
    interval = paired_bootstrap(a, np.zeros(100), source=source)
    assert interval[:4] == (2.0, 2.0, 2.0, "groups")
    one_place = paired_bootstrap(a, np.zeros(100), group=list(range(90)) + ["dam"] * 10, source=source)
    assert one_place.unit == "groups; photographs, within this site (few)" and one_place.groups == 91
    photo = list(range(90)) + ["0", "1"] * 5  # names met in the other source too: other photographs
    lacking = paired_bootstrap(a, np.zeros(100), photo=photo, source=source)
    assert lacking.unit == "groups; no interval: 2 photographs, fewer than 5 (few)" and lacking.photos == 92
    assert (lacking.difference, lacking.low, lacking.high, lacking.covered) == (2, 1, 1, 1)  # of "many" alone
    alone = paired_bootstrap(a[90:], np.zeros(10), photo=photo[90:], source=source[90:])
    assert alone.difference == 3 and math.isnan(alone.low) and math.isnan(alone.covered) and math.isnan(alone.p)


def test_same_seed_same_interval():
    a, b = np.random.default_rng(0).normal(size=(2, 50))
    assert paired_bootstrap(a, b, seed=3) == paired_bootstrap(a, b, seed=3) != paired_bootstrap(a, b, seed=4)
    swapped, interval = paired_bootstrap(b, a, seed=3), paired_bootstrap(a, b, seed=3)
    assert (swapped.low, swapped.high) == pytest.approx((-interval.high, -interval.low))
    assert isinstance(interval, Interval) and interval.n == interval.photos == interval.groups == 50


def test_bootstrap_errors():
    with pytest.raises(ValueError, match=r"one shape \(n,\) with n > 0, got \(3,\) and \(4,\)"):
        paired_bootstrap(np.zeros(3), np.zeros(4))
    with pytest.raises(ValueError, match="n > 0"):
        paired_bootstrap([], [])
    with pytest.raises(ValueError, match=r"NaN or infinity at tiles \[1\]"):
        paired_bootstrap([0, np.nan, 1], [0, 0, 1])
    with pytest.raises(ValueError, match="as many labels as values are wanted, got 2 and 3"):
        paired_bootstrap([0, 1, 2], [0, 0, 1], group=[0, 1])


def test_holm():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.5, 0.9, 0.8]), 1)
    np.testing.assert_allclose(holm([0.2]), 0.2)
    with pytest.raises(ValueError, match="0..1"):
        holm([0.1, 1.2])
