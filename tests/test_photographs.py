"""The notebooks on real photographs: only where `CRACK_PHOTOS` names a folder of them."""

import os

import pytest

from lab import notebooks

PHOTOS = os.environ.get("TEST_PHOTOS")


@pytest.mark.skipif(not PHOTOS, reason="CRACK_PHOTOS is not set")
@pytest.mark.parametrize("path", sorted((notebooks.ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebook_runs_on_photographs(path, monkeypatch, capsys):
    monkeypatch.setenv("CRACK_PHOTOS", PHOTOS)
    failed, _ = notebooks.run([path], notebooks.ROOT / "build" / "photos")
    assert failed == 0, capsys.readouterr().err
