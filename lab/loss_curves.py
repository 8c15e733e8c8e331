"""Curves of loss terms, for ``lab/report_losses.py``: more error on one axis, detail that came back on the other.

A *curve* is a method's points, one per weight or strength: per cent more MSE than plain MSE with the same budget
(rise), and the share closed of the gap in aligned sharpness to the clean picture (gap). `labels` are {"group",
"photo", "source"}, a list per tile each; `columns` are {figure: a list per tile}.
"""

import numpy as np
import pandas as pd

from lab.intervals import resampled_means
from lab.measures import gap_closed

RISES = (2, 10)


def by_source(values, labels):
    """Return the means of `values` (n,) per source, NaN left out."""
    return pd.Series(np.asarray(values, float)).groupby(labels["source"], sort=False).mean().to_numpy()


def point(columns, base, labels):
    """Return (per cent more MSE, gap closed) of one method against `base`: of means per source, then their mean."""
    means, plain = ([by_source(part[figure], labels) for figure in ("mse", "aligned_numerator", "aligned_denominator")]
                    for part in (columns, base))
    return of_means(np.array(means), np.array(plain))


def of_means(means, plain):
    """Return (rise, gap) from means (3, sources): MSE, and numerator and denominator of the aligned sharpness."""
    gaps = [gap_closed(r, r_mse) for r, r_mse in zip(means[1] / means[2], plain[1] / plain[2], strict=True)]
    gaps = [gap for gap in gaps if gap is not None]
    return 100 * (means[0].mean() / plain[0].mean() - 1), float(np.mean(gaps)) if gaps else np.nan


def curve(points, base, labels):
    """Return the points of a curve, [(rise, gap)], the MSE checkpoint's own (0, 0) among them."""
    return [(0.0, 0.0), *(point(columns, base, labels) for columns in points)]


def at(points, rise):
    """Return the most that a curve reaches with at most `rise` per cent more MSE.

    >>> at([(0, 0), (1, 0.2), (3, 0.4)], 2)
    0.3
    """
    points = sorted(points)
    best = max((gap for x, gap in points if x <= rise), default=np.nan)
    for (x, a), (y, b) in zip(points, points[1:], strict=False):
        if x <= rise < y:
            best = max(best, a + (b - a) * (rise - x) / (y - x))
    return float(round(best, 10))


def drawn_curves(curves, base, labels, resamples=1000):
    """Return {method: {rise: values (resamples,)}} of `at` under the same bootstrap draws for all methods.

    `curves`: {method: [columns]}. Sources with too few photographs are left out.
    """
    figures = ("mse", "aligned_numerator", "aligned_denominator")
    stacked = [base[f] for f in figures]
    for points in curves.values():
        stacked += [columns[f] for columns in points for f in figures]
    draws = resampled_means(stacked, **labels, resamples=resamples)  # (sources, k, resamples)
    draws = draws[np.isfinite(draws).all((1, 2))]
    found, first = {}, 3
    for method, points in curves.items():
        rows = []
        for n in range(resamples):
            plain = draws[:, :3, n].T
            rows.append([(0.0, 0.0), *(of_means(draws[:, first + 3 * i:first + 3 * i + 3, n].T, plain)
                                       for i in range(len(points)))])
        found[method] = {rise: np.array([at(row, rise) for row in rows]) for rise in RISES}
        first += 3 * len(points)
    return found


def with_interval(columns, labels):
    """Return the columns, or the labels, without the tiles of sources that are too few for an interval."""
    keep = np.isfinite(resampled_means(np.ones((1, len(labels["source"]))), **labels, resamples=1))[:, 0, 0]
    kept = np.array(list(dict.fromkeys(labels["source"])))[keep]
    here = np.flatnonzero(np.isin(labels["source"], kept))
    return {figure: [values[i] for i in here] for figure, values in columns.items()}
