"""From figures per tile to the rows of a table: means per source, the mean of the sources, intervals.

    items = item_rows(dataset.items, {"mse": errors}, method="unet", sigma=50)
    rows = with_mean(per_source(items, ["method", "sigma"]), ["method", "sigma"])
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from lab.intervals import paired_bootstrap

ITEM = ("name", "photo", "group", "source", "has_mask")
Items = pd.DataFrame | Sequence  # a table with these columns, or Items or Samples


def item_rows(items: Sequence, columns: Mapping, **words: object) -> pd.DataFrame:
    """Return a DataFrame with a row per item: `words`, what the item is, its figures.

    Args:
        items: Items or Samples.
        columns: {figure: (n,)}; None, as JSON has it, is NaN.
    """
    figures = {name: np.asarray(values, float) for name, values in columns.items()}
    return pd.DataFrame({**words, **{what: [getattr(item, what) for item in items] for what in ITEM}, **figures})


def per_source(items: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Return a row per combination of the columns `by` and source: `n`, and the means of all figures, NaN left out."""
    groups = items.groupby([*by, "source"], sort=False, dropna=False)
    figures = [name for name in items if name not in (*by, *ITEM)]
    means = groups[figures].mean()
    means.insert(0, "n", groups.size())
    return means.reset_index()


def with_mean(rows: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Return the rows of `per_source`, after each combination's sources their "mean", in which they weigh equally.

    A figure that a source has not has no mean.
    """
    figures, parts = [name for name in rows if name not in (*by, "source", "n")], []
    for key, part in rows.groupby(list(by), sort=False, dropna=False):
        mean = {**dict(zip(by, key, strict=True)), "source": "mean", "n": part["n"].sum()}
        parts += [part, pd.DataFrame([mean | part[figures].mean(skipna=False).to_dict()])]
    return pd.concat(parts, ignore_index=True)[list(rows)]


def quotient(rows: pd.DataFrame, numerator: str, denominator: str) -> pd.Series:
    """Return the quotient of two columns of means, NaN where the denominator is 0.

    A source's quotient is that of its means: a quotient per tile would let tiles without detail weigh too much.
    """
    return rows[numerator] / rows[denominator].where(rows[denominator] != 0)


def source_rows(items: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Return the rows of `per_source` and their means."""
    return with_mean(per_source(items, by), by)


def rounded(value: pd.DataFrame | Sequence[float], digits: int = 4) -> pd.DataFrame | np.ndarray:
    """Return floats (any array, or the columns of a DataFrame) with that many significant digits.

    >>> rounded([0.123456, 12345.6, float("nan")]).tolist()
    [0.1235, 12350.0, nan]
    """
    if isinstance(value, pd.DataFrame):
        return value.apply(lambda column: rounded(column, digits) if column.dtype.kind == "f" else column)
    return np.array([float(f"{number:.{digits}g}") for number in np.asarray(value, float)])


def mean_of_sources(values: Sequence[float], items: Items) -> float:
    """Return the mean of the sources' means of values (n,); `items`: a table with column source, or Items, Samples."""
    return float(pd.Series(np.asarray(values, float)).groupby(labels_of(items)["source"]).mean().mean())


def labels_of(items: Items) -> dict[str, list]:
    """Return {"group", "photo", "source"}, a list with a label per item each, of Items, Samples or a table of items."""
    return {what: list(items[what]) if isinstance(items, pd.DataFrame) else [getattr(item, what) for item in items]
            for what in ("group", "photo", "source")}


def interval(a: Sequence[float], b: Sequence[float], items: Items) -> dict:
    """Return the paired difference a - b, mean of sources, with its bootstrap interval, as the columns of a table."""
    found = paired_bootstrap(a, b, **labels_of(items))
    return {name: getattr(found, name) for name in ("difference", "low", "high", "covered", "p", "unit", "n")}
