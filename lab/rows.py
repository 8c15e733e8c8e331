"""Figures per tile brought to rows, one per source, with intervals, for ``lab/report_cams.py``."""

import numpy as np

from lab.intervals import paired_bootstrap, resampled_means
from lab.measures import gap_closed
from surfaces.draw import KINDS


def of_sources(values, samples):
    """Return the mean of the sources' means."""
    source = np.array([sample.source for sample in samples])
    return float(np.mean([np.mean(np.asarray(values, float)[source == name]) for name in dict.fromkeys(source)]))


def interval(a, b, samples):
    """Return the paired difference a - b, mean of sources, with its bootstrap interval."""
    found = paired_bootstrap(a, b, *([getattr(s, what) for s in samples] for what in ("group", "photo", "source")))
    return {"difference": found.difference, "low": found.low, "high": found.high, "p": found.p, "unit": found.unit,
            "covered": found.covered, "n": found.n}


def rows_of(columns, samples, **words):
    """Return a row per source and one, "mean", in which the sources weigh equally."""
    source = np.array([sample.source for sample in samples])
    source = np.where(np.isin(source, KINDS), "drawn", source)
    rows = [{**words, "source": str(name), "n": int((source == name).sum()),
             **{figure: float(np.nanmean(np.asarray(values, float)[source == name]))
                for figure, values in columns.items()}} for name in dict.fromkeys(source)]
    mean = {figure: float(np.mean([row[figure] for row in rows])) for figure in columns}
    rows.append({**words, "source": "mean", "n": len(samples), **mean})
    return [{key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in row.items()}
            for row in rows]


def loss_rows(columns, samples, names):
    """Return rows for an intervention: per cent more MSE than the untouched network, and against a random choice."""
    base = np.array(columns.pop("none"))  # (tiles, 3)
    random = {}
    for key in list(columns):
        *first, how, k = key.split("|")
        if how.startswith("random"):
            random.setdefault((*first, k), []).append(np.array(columns.pop(key)))
    for (first, k), draws in random.items():
        columns[f"{first}|random|{k}"] = np.mean(draws, 0)
    rows = []
    for key, values in columns.items():
        first, how, k = key.split("|")
        for zone, figure in enumerate(("mse", "mse_crack", "mse_rest")):
            mine, scale = np.array(values)[:, zone], 100 / of_sources(base[:, zone], samples)
            row = {names: first, "how": how, "k": int(k), "figure": figure}
            for words, other in (("", base), ("random_", columns[f"{first}|random|{k}"])):
                if words and how == "random":
                    continue
                found = interval(mine, np.array(other)[:, zone], samples)
                row |= {f"{words}{name}": float(f"{scale * found[key]:.4g}") for name, key in
                        (("percent", "difference"), ("low", "low"), ("high", "high"), ("covered", "covered"))}
                row |= {f"{words}p": found["p"]}
            rows.append(row)
    return rows
RISES = (2, 10)


def labels_of(dataset):
    """Return {"group": ..., "photo": ..., "source": ...}, a list per tile each."""
    parts = getattr(dataset, "datasets", [dataset])
    items = [item for part in parts for item in part.items]
    return {what: [getattr(item, what) for item in items] for what in ("group", "photo", "source")}


def by_source(values, labels):
    """Return the means of `values` (n,) per source, NaN left out."""
    source, values = np.array(labels["source"]), np.array(values, float)
    with np.errstate(all="ignore"):
        return np.array([np.nanmean(values[source == name]) if np.isfinite(values[source == name]).any() else np.nan
                         for name in dict.fromkeys(source)])


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
