"""Intervals of paired differences, ratios of means, and the correction for testing many.

    interval = paired_bootstrap(a, b, group=places, photo=photos, source=sources)
    interval.difference, interval.low, interval.high

Tiles of one place look alike, so that they are no independent witnesses. The bootstrap therefore has two stages: places
are drawn with replacement, then tiles within each place that was drawn.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from helpers.metrics import as_numpy

Labels = Sequence | np.ndarray | None  # (n,), of any kind that has a text


def ratio_of_means(numerators: ArrayLike, denominators: ArrayLike) -> float:
    """A source's figure from its images' numerators and denominators, (n,) each: mean over mean.

    >>> ratio_of_means([1, 2], [4, 4])
    0.375
    """
    numerators, denominators = np.asarray(numerators, float), np.asarray(denominators, float)
    if numerators.shape != denominators.shape or numerators.ndim != 1 or not numerators.size:
        raise ValueError(f"two arrays (n,) with n > 0 are wanted, got {numerators.shape} and {denominators.shape}")
    mean = denominators.mean()
    return float(numerators.mean() / mean) if mean else float("nan")


class Interval(NamedTuple):
    """A paired difference and its bootstrap interval (`low`, `high`, `p` and `covered` NaN when there is none)."""

    difference: float  # mean of a - b; the mean of the sources' means when sources are given
    low: float
    high: float
    unit: str  # what was drawn, in words
    n: int  # tiles
    groups: int
    photos: int
    p: float  # two-sided bootstrap p-value of "no difference", at least 2 / (resamples + 1)
    covered: float  # the difference that `low` and `high` are about: without the sources of too few photographs


def _codes(n, *labels):
    """Integer codes 0..k-1 of the combinations of label columns (those that are None ignored), by first appearance."""
    columns = []
    for label in labels:
        if label is not None:
            label = [str(value) for value in as_numpy(label)]
            if len(label) != n:
                raise ValueError(f"as many labels as values are wanted, got {len(label)} and {n}")
            columns.append(label)
    if not columns:
        return np.arange(n)
    index = {}
    return np.array([index.setdefault(key, len(index)) for key in zip(*columns, strict=True)])


def _two_stage_means(values, unit, resamples, rng):
    """Means (resamples,) of draws with replacement: units first, then the tiles within each unit drawn."""
    order = np.argsort(unit, kind="stable")
    values, sizes = values[order], np.bincount(unit)
    starts = np.cumsum(sizes) - sizes
    means = []
    # resamples in blocks, so that at most two million tiles are drawn at a time
    for block in np.array_split(np.arange(resamples), max(1, resamples * len(values) // 2_000_000)):
        drawn = rng.integers(len(sizes), size=(len(block), len(sizes)))  # as many units as there are, some twice
        repeat = sizes[drawn].ravel()  # tiles to draw in each drawn unit
        within = (rng.random(repeat.sum()) * np.repeat(repeat, repeat)).astype(int)
        tiles = np.repeat(starts[drawn].ravel(), repeat) + within
        # all tiles weigh the same: a resample with large units has more of them
        row = np.repeat(np.arange(len(block)), sizes[drawn].sum(1))
        means.append(np.bincount(row, values[tiles], len(block)) / sizes[drawn].sum(1))
    return np.concatenate(means)


def _units(n, group, photo, source):
    """Return codes (n,) of the groups, the photographs and the sources; see `paired_bootstrap`."""
    photos = _codes(n, source, group, photo if photo is not None else np.arange(n))
    groups = photos if group is None else _codes(n, source, group)
    return groups, photos, np.zeros(n, int) if source is None else _codes(n, source)


def _unit_of(groups, photos):
    """Return what is drawn within a source, codes (n,) from 0 on, and its name; None with too few photographs."""
    n_groups, n_photos = len(np.unique(groups)), len(np.unique(photos))
    if n_photos < 5:
        return None, f"no interval: {n_photos} photographs, fewer than 5"
    unit, words = (groups, "groups") if n_groups >= 8 else (photos, "photographs, within this site")
    return np.unique(unit, return_inverse=True)[1], words


def resampled_means(columns: ArrayLike, group: Labels = None, photo: Labels = None, source: Labels = None,
                    resamples: int = 2000, seed: int = 0) -> np.ndarray:
    """Bootstrap means of several figures of the same tiles under the same draws, for intervals of any function of them.

    Args:
        columns: (k, n), k figures of n tiles, finite.
        group, photo, source, resamples, seed: as in `paired_bootstrap`.

    Returns:
        (sources, k, resamples): each source's means, sources in the order of their first tile. A source with fewer than
        5 photographs is NaN.

    >>> resampled_means(np.ones((2, 9)), resamples=3).shape
    (1, 2, 3)
    """
    columns = np.asarray(columns, float)
    if columns.ndim != 2 or not columns.size or not np.isfinite(columns).all():
        raise ValueError(f"columns must be finite (k, n), got {columns.shape}")
    groups, photos, sources = _units(columns.shape[1], group, photo, source)
    found = np.full((sources.max() + 1, len(columns), resamples), np.nan)
    for s in range(sources.max() + 1):
        here = sources == s
        unit, _ = _unit_of(groups[here], photos[here])
        for k, values in enumerate(columns if unit is not None else ()):  # a generator each: the same draws for all k
            found[s, k] = _two_stage_means(values[here], unit, resamples, np.random.default_rng([seed, s]))
    return found


def paired_bootstrap(a: ArrayLike, b: ArrayLike, group: Labels = None, photo: Labels = None, source: Labels = None,
                     resamples: int = 2000, level: float = 0.95, seed: int = 0) -> Interval:
    """Bootstrap interval of the mean paired difference a - b: groups are drawn, then tiles within each.

    Tiles of one group (one place) are not independent, so groups are drawn. With fewer than 8 groups photographs are
    drawn instead and `unit` says "within this site"; with fewer than 5 photographs there is no interval. With `source`
    the rule holds within each source, sources are drawn from separately and weigh equally in the mean. The interval
    of the mean leaves out a source of fewer than 5 photographs, `unit` names it, and `covered` is the mean difference
    without it.

    Args:
        a, b: (n,) numbers, one per tile, in the same order.
        group, photo, source: (n,) labels; a photograph's name counts within its source and group. Without `photo`
            each tile is a photograph; without `group` each photograph is a group (as synthetic images are).
        resamples, level, seed: draws, coverage of the percentile interval, the generator's seed.

    Raises:
        ValueError: shapes differ, nothing came, or a value is NaN or infinite.

    >>> paired_bootstrap(np.ones(9), np.zeros(9))[:4]
    (1.0, 1.0, 1.0, 'groups')
    """
    a, b = (np.asarray(as_numpy(values), float) for values in (a, b))
    if a.shape != b.shape or a.ndim != 1 or not len(a):
        raise ValueError(f"a and b must be of one shape (n,) with n > 0, got {a.shape} and {b.shape}")
    difference = a - b
    if len(bad := np.flatnonzero(~np.isfinite(difference))):
        raise ValueError(f"values must be finite, got NaN or infinity at tiles {bad[:9].tolist()}")
    n = len(a)
    groups, photos, sources = _units(n, group, photo, source)

    rng, draws, means, covered, notes = np.random.default_rng(seed), [], [], [], []
    for s in range(sources.max() + 1):
        here = sources == s
        unit, words = _unit_of(groups[here], photos[here])
        named = sources.max() and words != "groups"  # the usual case needs no name beside it
        notes.append(f"{words} ({as_numpy(source)[here.argmax()]})" if named else words)
        means.append(difference[here].mean())
        if unit is not None:
            draws.append(_two_stage_means(difference[here], unit, resamples, rng))
            covered.append(means[-1])
    counts = n, int(groups.max()) + 1, int(photos.max()) + 1
    unit, nan = "; ".join(dict.fromkeys(notes)), float("nan")
    if not draws:
        return Interval(float(np.mean(means)), nan, nan, unit, *counts, nan, nan)
    drawn = np.mean(draws, axis=0)  # (resamples,): sources weigh equally in each resample too
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    # two-sided: twice the smaller tail, never 0, since the data themselves count as one resample
    tail = min(np.count_nonzero(drawn <= 0), np.count_nonzero(drawn >= 0))
    p = float(min(1, 2 * (tail + 1) / (resamples + 1)))
    return Interval(float(np.mean(means)), float(low), float(high), unit, *counts, p, float(np.mean(covered)))


def holm(p_values: ArrayLike) -> np.ndarray:
    """Holm's step-down correction of (m,) p-values (Scandinavian Journal of Statistics 6, 1979), in the given order.

    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, float)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p-values must be (m,) in 0..1, got {p_values}")
    # the smallest is multiplied by m, the next by m - 1, and none comes out smaller than the one before
    order = np.argsort(p)
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return corrected
