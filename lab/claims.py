"""Are the numbers in the notebooks' prose still those of the tables? `notebooks/claims.csv` ties each to its source.

    python -m lab.claims        every claim that is wrong and every number that no claim covers; exit 1 if there is one

A row of the file is one number in a Markdown cell:

| column | holds |
| --- | --- |
| notebook | the beginning of the notebook's name, `01` |
| words | the words around the number as they stand there, with `{}` in its place |
| table | the table in data/results/ that it comes from |
| expression | Python over that table, a DataFrame called `t` (also `np` and `pd`), which gives the number |
| format | how it is written: a format specification (`.2f`, `+.1f`, `.0%`, `d`) |
| reason | only for a number that comes from no table: why not (then table, expression and format are empty) |

Prose has to say every number with a unit (dB, %, AUC, AP, seconds, MB) that way, or give a reason.
"""

import re
import sys
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd

from helpers.project import ROOT, results

CLAIMS = ROOT / "notebooks" / "claims.csv"
COLUMNS = ["notebook", "words", "table", "expression", "format", "reason"]
# a number and its unit, in either order; thin and no-break spaces count as spaces
NUMBER = r"[-+−±]?\d+(?:[.,]\d+)*"
WITH_UNIT = re.compile(rf"{NUMBER}\s*(?:dB\b|decibels?\b|%|s\b|seconds?\b|MB\b)|\b(?:AUC|AP)\b(?:\s+of)?\s+{NUMBER}")


def read_claims(path: Path = CLAIMS) -> pd.DataFrame:
    """Return the rows of the file, every cell a string.

    Raises:
        ValueError: other columns, words without exactly one `{}`, or a row with neither a source nor a reason.
    """
    claims = pd.read_csv(path, dtype=str, keep_default_na=False)
    if list(claims.columns) != COLUMNS:
        raise ValueError(f"{path.name} must have the columns {', '.join(COLUMNS)}, got {', '.join(claims.columns)}")
    for line, row in enumerate(claims.itertuples(), start=2):
        sourced = bool(row.table and row.expression and row.format)
        if sourced == bool(row.reason) or row.words.count("{}") != sourced:
            raise ValueError(f"{path.name}, line {line}: wanted words with one {{}}, table, expression and format, or "
                             f"words as they stand and a reason; got {row.words!r}")
    return claims


def value_of(row: pd.Series) -> str:
    """Recompute the number of a claim from its table; return it as the prose has to write it."""
    value = eval(row.expression, {"t": results(row.table), "np": np, "pd": pd})  # our own file, never a reader's
    return format(int(value) if row.format == "d" else float(value), row.format).replace("-", "−" if "−" in row.words
                                                                                         else "-")


def prose_of(path: Path) -> str:
    """Return all Markdown of a notebook, white space made plain."""
    cells = nbformat.read(path, as_version=4).cells
    return " ".join("\n".join(cell.source for cell in cells if cell.cell_type == "markdown").split())


def check(path: Path, claims: pd.DataFrame) -> tuple[list[str], list[str]]:
    """Hold a notebook against its claims.

    Returns:
        Sentences about claims that do not stand in the prose with the number that the table gives today, and the
        numbers with a unit that no claim covers, each with the words around it.
    """
    prose, wrong, covered = prose_of(path), [], set()
    for _, row in claims[claims.notebook == path.name[:2]].iterrows():
        number = "" if row.reason else value_of(row)
        words = " ".join(row.words.replace("{}", number).split())
        places = [match.start() for match in re.finditer(re.escape(words), prose)]
        if not places:
            wrong.append(f"{path.name}: the tables say {number or 'nothing'}, the prose has no {words!r}")
        for start in places:
            covered |= set(range(start, start + len(words)))
    bare = [f"{path.name}: … {prose[max(0, match.start() - 50):match.end() + 20]} …"
            for match in WITH_UNIT.finditer(prose) if not covered.issuperset(range(match.start(), match.end()))]
    return wrong, bare


def main() -> int:
    """Check every notebook that has a claim; print what is wrong and return the exit status."""
    claims = read_claims()
    paths = [path for path in sorted((ROOT / "notebooks").glob("*.ipynb")) if path.name[:2] in set(claims.notebook)]
    found = [line for path in paths for part in check(path, claims) for line in part]
    print("\n".join(found) or f"{len(claims)} claims in {len(paths)} notebooks hold")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
