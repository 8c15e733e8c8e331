"""Numbers in prose: each is recomputed from its table, and one that is tied to no table is found."""

import nbformat
import pandas as pd
import pytest

from helpers.project import ROOT
from lab import claims

TIED = ("01", "02")  # notebooks whose numbers are all tied to tables; the others follow as they are rewritten


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_numbers_in_prose_are_those_of_the_tables(path):
    wrong, bare = claims.check(path, claims.read_claims())
    assert wrong == []
    if path.name[:2] in TIED:
        assert bare == []


def test_every_claim_belongs_to_a_notebook_and_a_table():
    rows = claims.read_claims()
    assert set(rows.notebook) >= set(TIED)
    assert set(rows.notebook) <= {path.name[:2] for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert not rows.duplicated(["notebook", "words"]).any()


@pytest.fixture
def notebook(tmp_path, monkeypatch):
    """A notebook 01 with one sentence, and a function that checks it against claims over the table [1.234, 5]."""
    monkeypatch.setattr(claims, "results", lambda name: pd.DataFrame({"psnr": [1.234, 5.0]}))

    def checked(prose, *rows):
        nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(prose)])
        nbformat.write(nb, tmp_path / "01_x.ipynb")
        pd.DataFrame(rows, columns=claims.COLUMNS).to_csv(tmp_path / "claims.csv", index=False)
        return claims.check(tmp_path / "01_x.ipynb", claims.read_claims(tmp_path / "claims.csv"))

    return checked


ROW = ("01", "a blur has {} dB", "t", "t.psnr.min()", ".2f", "")


def test_a_changed_number_is_found(notebook):
    assert notebook("Here a blur has\n1.23 dB.", ROW) == ([], [])
    wrong, bare = notebook("Here a blur has 1.24 dB.", ROW)
    assert "the tables say 1.23" in wrong[0] and "1.24 dB" in bare[0]


@pytest.mark.parametrize("prose", ["costs 3 %.", "in 20 seconds", "12.5 dB", "an AUC of 0.93", "AP 0.4", "takes 5 MB",
                                   "−0.3 dB", "40 s on a laptop"])
def test_a_number_without_a_source_is_found(notebook, prose):
    wrong, bare = notebook(f"It {prose} and a blur has 1.23 dB.", ROW)
    assert wrong == [] and len(bare) == 1


def test_a_number_with_a_reason_is_left_alone(notebook):
    assert notebook("Three dB is half the error: 3 dB.", ("01", "half the error: 3 dB", "", "", "", "arithmetic")
                    ) == ([], [])


@pytest.mark.parametrize("row", [("01", "no place", "t", "t.psnr.min()", ".2f", ""), ("01", "{} dB", "t", "", "", ""),
                                 ("01", "{} dB", "", "", "", "why"), ("01", "3 dB", "", "", "", "")])
def test_rows_that_say_too_little_are_refused(notebook, row):
    with pytest.raises(ValueError, match="line 2: wanted words with one"):
        notebook("Words.", row)
