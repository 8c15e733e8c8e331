"""Figures per tile brought to rows, one per source, with intervals, for ``scripts/report_cams.py``."""

import numpy as np

from helpers.intervals import paired_bootstrap
from helpers.surfaces import KINDS


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
