"""What all tests share: photographs hidden, a browser where there is one."""

import os
import shutil

import pandas as pd
import pytest

from helpers.project import results

# Committed outputs were made without photographs, and so is everything that is compared with them: CRACK_PHOTOS is
# hidden from the tests and from the kernels they start, and only test_photographs.py gets it back.
if os.environ.get("CRACK_PHOTOS"):
    os.environ["TEST_PHOTOS"] = os.path.abspath(os.environ.pop("CRACK_PHOTOS"))


@pytest.fixture(scope="session")
def chromium():
    """The path of a Chromium or Chrome; the test is skipped where there is none, and fails if REQUIRE_BROWSER=1."""
    for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"):
        if path := shutil.which(name):
            return path
    if os.environ.get("REQUIRE_BROWSER") == "1":
        pytest.fail("REQUIRE_BROWSER=1, but no Chromium or Chrome was found on PATH")
    pytest.skip("no Chromium or Chrome on PATH")


@pytest.fixture
def browser(chromium):
    """A headless browser of Playwright's, one per test: its event loop must not be there when a notebook starts one."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=[
                "--no-sandbox", "--disable-gpu", "--disable-background-networking",
                "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"])  # as without a network, wherever it runs
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def same_rows():
    """A function that asserts that a DataFrame is the stored table `name`: its rows, columns, texts and numbers.

    `key` names the columns that tell rows apart; `rtol` is what numbers may differ by.
    """
    def check(found, name, key, rtol=1e-9):
        stored, found = (table.set_index(key.split()).sort_index() for table in (results(name), found))
        assert sorted(found) == sorted(stored)
        pd.testing.assert_frame_equal(found[list(stored)], stored, check_exact=False, rtol=rtol, atol=1e-12,
                                      check_dtype=False)
    return check
