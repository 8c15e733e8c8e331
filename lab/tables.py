"""Write the tables of data/results/: CSV, one line per row, floats with all their digits, bytes that only change when
the values do. ``helpers.project.results`` reads them.

    made = provenance("python -m lab.report student", seed=0)
    save_tables({"student": rows, "student_items": items}, made, student={"sigma": 50})
"""

import gzip
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from helpers.project import data_dir, results
from surfaces.files import atomic_path

# the columns that name a row of each table; no two rows may have the same
KEYS = {
    "ablation": "method seed source", "ablation_differences": "a b figure", "ablation_items": "method seed name",
    "ablation_joins": "join set", "ablation_runs": "method seed", "cams": "set sigma network layer method source",
    "cams_choice": "setting source", "cams_differences": "a b figure source", "cams_evidence": "method source",
    "cams_interventions": "network layer replacement how k figure", "cams_iou": "method source",
    "cams_items": "network layer method name", "cams_sanity": "network randomised",
    "cams_signs": "split network layer method rule source", "cost": "method", "filters": "set sigma method",
    "hybrids_interventions": "method replacement how k figure", "legibility_of_clean": "source",
    "losses": "set method run strength source", "losses_at_rise": "set method rise",
    "losses_differences": "set run against figure", "losses_history": "run step", "losses_items": "set run item",
    "photos": "method source sigma", "photos_differences": "method against source",
    "photos_items": "method sigma name", "provenance": "table command", "seconds": "notebook",
    "regimes": "arm trunk seed regime sigma hole set source swap",
    "regimes_cost": "arm", "regimes_crack": "arm trunk seed regime sigma hole set source swap",
    "regimes_gains": "arm against swap sigma set source",
    "regimes_items": "arm trunk seed regime sigma hole set name swap",
    "regimes_valid": "arm trunk seed regime sigma hole set source swap",
    "settings": "table setting", "student": "method block source", "student_differences": "against figure block",
    "student_items": "method block name", "surfaces": "set source figure", "synthetic": "method source sigma",
    "synthetic_items": "method sigma name", "trained_on": "method source sigma",
    "unseen": "set noise method source", "unseen_items": "set noise method name"}
Rows = pd.DataFrame | Iterable[dict]
SHARED = ("filters",)  # written by several commands, each its own rows


def save_table(name: str, rows: Rows) -> None:
    """Write rows as ``data/results/<name>.csv``; large ones, ``..._items`` and ``..._vectors``, compressed.

    The compressed file holds no time and no name, so that the same rows give the same bytes.

    Args:
        rows: a DataFrame, or dicts; their columns stand in the order of the first row that has them.

    Raises:
        ValueError: there are no rows, text is empty (it would read back as missing), a column of the key is missing,
            or two rows have the same key.
    """
    # objects stay what they are: pandas would turn whole numbers into floats where some are missing
    table = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows), dtype=object)
    if table.empty:
        raise ValueError(f"a table of results needs at least one row with a named value, got none for {name!r}")
    if empty := [column for column in table if (table[column] == "").any()]:
        raise ValueError(f"text must not be empty, it would read back as missing, got some in {empty}")
    key = KEYS.get(name, "").split()
    if missing := [column for column in key if column not in table]:
        raise ValueError(f"{name!r} needs the columns {', '.join(key)}, which name a row; {missing} are missing")
    if key and len(again := table[table.duplicated(key)]):
        raise ValueError(f"two rows of {name!r} have the same key {again[key].iloc[0].to_dict()}")
    content = table.to_csv(index=False, lineterminator="\n").encode()
    compressed = name.endswith(("_items", "_vectors"))
    if compressed:
        content = gzip.compress(content, compresslevel=9, mtime=0)
    with atomic_path(data_dir() / "results" / f"{name}.csv{'.gz' if compressed else ''}") as temporary:
        temporary.write_bytes(content)


def save_tables(tables: Mapping[str, Rows], made: Mapping, methods: Sequence[str] = (), **settings: Mapping) -> None:
    """Write the tables of one command, how they were made into `provenance`, and what was chosen into `settings`.

    Args:
        tables: {name: rows or DataFrame}; where nothing was measured (no rows) the stored table stays.
        made: what `lab.provenance.provenance` returns.
        methods: given, the tables hold only these (and "noisy"): their rows replace those of the same key, the others
            stay as they are. "noisy" must have the figures that it had, to three digits.
        settings: of each table or group of tables, {setting: value}.

    Raises:
        ValueError: a method was not measured, or the images, the noise or the reader are not those of the other rows.
    """
    tables = {name: rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows), dtype=object)
              for name, rows in tables.items() if len(rows)}
    for name, rows in tables.items() if methods else ():
        if name not in SHARED and (missing := sorted(set(methods) - set(rows["method"]))):
            raise ValueError(f"no method or no checkpoint {', '.join(missing)}")
        if name.endswith("_items"):
            check_the_same_noise(name, rows)
    origin = there("provenance")
    places = list(dict.fromkeys([*origin.get("table", []), *tables]))  # so that git shows only what changed
    for name, rows in tables.items():
        note = pd.DataFrame([{"table": name, **made, "methods": " ".join(methods) or None}], dtype=object)
        if methods or name in SHARED:
            save_table(name, put_into(there(name), rows, KEYS[name].split()))
            origin = pd.concat([origin, note]).drop_duplicates(KEYS["provenance"].split(), keep="last")
        else:
            save_table(name, rows)
            origin = pd.concat([origin[origin["table"] != name] if len(origin) else origin, note])
    save_table("provenance", origin.sort_values("table", key=lambda names: names.map(places.index), kind="stable"))
    chosen = [{"table": group, "setting": setting, "value": str(value)}
              for group, values in settings.items() for setting, value in values.items()]
    if chosen:
        path = data_dir() / "results" / "settings.csv"  # read as text: numbers keep their digits
        rows = pd.read_csv(path, dtype=str, keep_default_na=False).to_dict("records") if path.is_file() else []
        places = list(dict.fromkeys(row["table"] for row in rows + chosen))
        save_table("settings", sorted([row for row in rows if row["table"] not in settings] + chosen,
                                      key=lambda row: places.index(row["table"])))


def put_into(old: pd.DataFrame, new: pd.DataFrame, key: list[str]) -> pd.DataFrame:
    """Return the rows of `old`, those that `new` has too replaced in their places, then what only `new` has.

    >>> put_into(pd.DataFrame({"a": [1, 2], "b": [3, 4]}), pd.DataFrame({"a": [0, 1], "b": [5, 6]}), ["a"]).to_numpy()
    array([[1, 6],
           [2, 4],
           [0, 5]])
    """
    both = pd.concat([old, new], ignore_index=True)
    place = both.groupby(key, sort=False, dropna=False).ngroup()  # of the first row with this key
    return both.drop_duplicates(key, keep="last").sort_index(key=lambda rows: place[rows], ignore_index=True)


def there(name: str) -> pd.DataFrame:
    """Return the table of that name, or one without rows where there is none yet."""
    try:
        return results(name)
    except FileNotFoundError:
        return pd.DataFrame()


def check_the_same_noise(name: str, rows: pd.DataFrame) -> None:
    """Raise ValueError unless "noisy" among the `rows` of some methods has the figures of table `name`, per item."""
    key = KEYS[name].split()
    now, before = (part[part["method"] == "noisy"].set_index(key).select_dtypes("number")
                   for part in (rows, results(name)))
    # only under the noise that was measured again, but there all items
    before = before[before.index.droplevel("name").isin(now.index.droplevel("name"))]
    # the segmenter's figures differ in the last digit between machines
    if now.empty or not now.index.equals(before.index) or list(now) != list(before) or not np.allclose(
            now, before, rtol=3e-4, equal_nan=True):
        raise ValueError("these results are of other pictures or other noise: measure all methods anew")
