"""Write the tables of data/results/: CSV, one line per row, floats with all their digits, bytes that only change when
the values do. ``helpers.project.results`` reads them.
"""

import csv
import gzip
import io

import numpy as np

from helpers.project import data_dir
from surfaces.files import atomic_path


def cell(value):
    """Return a value as the text of a CSV cell: the shortest digits that read back as the same number, "" for none.

    >>> cell(0.1), cell(50), cell(True), cell("sato, pooled"), cell(float("nan")), cell(None)
    ('0.1', '50', 'True', 'sato, pooled', '', '')
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or value != value:  # NaN is the one value that differs from itself
        return ""
    return repr(value) if isinstance(value, float) else str(value)


def table_text(rows):
    """Return rows (dicts) as CSV text: a line of names, in the order of their first row, then a line per row.

    Raises:
        ValueError: there are no rows, or a value is empty text, which would read back as missing.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    if not names:
        raise ValueError("a table of results needs at least one row with a named value, got none")
    if empty := [name for row in rows for name, value in row.items() if isinstance(value, str) and not value]:
        raise ValueError(f"text must not be empty, it would read back as missing, got some in {sorted(set(empty))}")
    lines = io.StringIO()
    writer = csv.writer(lines, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([cell(row.get(name)) for name in names] for row in rows)
    return lines.getvalue()


def save_table(name, rows):
    """Write rows (dicts) as ``data/results/<name>.csv``; large ones, ``..._items`` and ``..._vectors``, compressed.

    The compressed file holds no time and no name, so that the same rows give the same bytes.
    """
    content = table_text(rows).encode()
    compressed = name.endswith(("_items", "_vectors"))
    if compressed:
        content = gzip.compress(content, compresslevel=9, mtime=0)
    with atomic_path(data_dir() / "results" / f"{name}.csv{'.gz' if compressed else ''}") as temporary:
        temporary.write_bytes(content)
