"""The README's numbers are those of data/results/, and its commands are those that exist."""

import re

import pytest

from helpers.project import ROOT
from lab import readme

TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_numbers_are_regenerated_from_the_results():
    assert readme.written(TEXT) == TEXT, "run `make readme`"


def test_costs_are_regenerated_from_the_cards():
    text = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    assert readme.written(text, {"cost": readme.cost_part}) == text, "run `make readme`"
    assert "crops of" in text


def test_regeneration_notices_a_changed_number():
    changed = re.sub(r"\| unet \| \d", "| unet | 9", TEXT)
    assert changed != TEXT and readme.written(changed) == TEXT


def test_missing_marks_are_named():
    with pytest.raises(ValueError, match="marks <!-- results -->"):
        readme.written("# no marks here")


def test_make_targets_of_the_readme_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"^(?:\w+=\S+ )?make ([a-z-]+)", TEXT, re.MULTILINE)) <= targets


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)\)", TEXT))
def test_links_lead_somewhere(link):
    assert link.startswith("http") or (ROOT / link).exists()
