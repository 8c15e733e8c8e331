"""The widgets in a real browser: Voila on the app, JupyterLab on three notebooks, by keyboard."""

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
from PIL import Image

from helpers.project import ROOT

APP = ROOT / "app" / "explorer.ipynb"
PNG = "89504e47"  # how a PNG starts, in hexadecimal digits
SECONDS = 120  # for each thing that is waited for; a notebook may run for five times as long
FETCH = """async image => {
    const bytes = new Uint8Array(await (await fetch(image.src)).arrayBuffer());
    return Array.from(bytes, byte => byte.toString(16).padStart(2, "0")).join("");
}"""


@contextlib.contextmanager
def server(module, *arguments, folder):
    """Start a Jupyter server from `folder` on a free port of 127.0.0.1, yield its address and token, end it.

    Neither settings of the user nor anything in the clone are read or written.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    names = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR",
             "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR")
    places = {name: str(folder / "jupyter" / name.lower()) for name in names}
    settings = folder / "jupyter" / "jupyterlab_settings_dir" / "@jupyterlab"
    for plugin, setting in {"apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
                            "notebook-extension/tracker": {"windowingMode": "none"}}.items():
        path = settings / f"{plugin}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(setting), encoding="utf-8")
    token, log = secrets.token_hex(16), folder / f"{module}.log"
    command = [sys.executable, "-m", module, *(word.format(token=token) for word in arguments), f"--port={port}",
               "--no-browser"]
    with open(log, "w", encoding="utf-8") as output:
        process = subprocess.Popen(command, cwd=folder, env={**os.environ, **places}, stdout=output, stderr=output)
    try:
        address, until = f"http://127.0.0.1:{port}", time.monotonic() + SECONDS
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{address}/login", timeout=SECONDS).close()
                break
            assert process.poll() is None and time.monotonic() < until, log.read_text(encoding="utf-8")
            time.sleep(0.2)
        yield address, token
    finally:
        process.terminate()
        try:
            process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture
def page(browser):
    """A page whose console is listened to: `page.complaints` lists what went wrong, with where it was said."""
    page = browser.new_page(viewport={"width": 1400, "height": 900})
    page.set_default_timeout(1000 * SECONDS)
    page.complaints = []
    page.on("pageerror", lambda error: page.complaints.append((str(error), "")))
    page.on("console", lambda message: message.type == "error"
            and page.complaints.append((message.text, message.location["url"])))
    return page


def changed(page, look, before):
    """Wait until `look()` gives something else than `before`; return it."""
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        with contextlib.suppress(Exception):  # the picture's address is gone once there is a newer one
            if (now := look()) != before:
                return now
        page.wait_for_timeout(100)
    raise AssertionError(f"nothing changed within {SECONDS} s")


def use_explorer(page):
    """Slide and choose in the first explorer of a page by keyboard; picture and numbers must follow."""
    page.locator(".cam-map").first.wait_for(timeout=5000 * SECONDS)
    explorer = page.locator(".cam-explorer").first

    def picture():
        return explorer.locator("img.cam-map").evaluate(FETCH)

    def line():
        return explorer.locator(".cam-line").inner_text()

    bytes_before, line_before = changed(page, picture, ""), changed(page, line, "")
    assert bytes_before.startswith(PNG)
    handle = explorer.locator(".noUi-handle-lower").first
    handle.focus()
    low = float(handle.get_attribute("aria-valuenow"))
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    assert float(handle.get_attribute("aria-valuenow")) > low
    bytes_slid, line_slid = changed(page, picture, bytes_before), changed(page, line, line_before)

    explorer.get_by_label("Method").select_option("TokenNorm")
    changed(page, lambda: "TokenNorm" in line(), False)
    changed(page, picture, bytes_slid)
    assert line() != line_slid

    beside = explorer.get_by_label("Beside it")
    assert not beside.is_visible()
    explorer.get_by_role("button", name="More settings").press("Enter")
    beside.wait_for()
    explorer.get_by_label("Target").wait_for()
    explorer.get_by_role("button", name="Reset").press("Enter")
    changed(page, lambda: "EigenCAM" in line(), False)
    assert explorer.locator(".cam-message").inner_text().strip() == ""


def test_voila_on_the_app(tmp_path, page):
    shutil.copy(APP, tmp_path)
    with server("voila", APP.name, "--Voila.ip=127.0.0.1", "--token={token}", "--show_tracebacks=True",
                folder=tmp_path) as (address, token):
        page.goto(f"{address}/")
        assert "/login" in page.url  # nobody gets in without the token
        page.goto(f"{address}/?token={token}", timeout=5000 * SECONDS)
        use_explorer(page)
    ours = [(text, url) for text, url in page.complaints
            if not (url.startswith("https://") and "ERR_NAME_NOT_RESOLVED" in text)]  # Voila's icons, from a network
    assert ours == [] and len(page.complaints) <= 2


def use_slider(page):
    """Slide in the first picture with a slider by keyboard; the picture must follow."""
    page.locator("img.shown-picture").first.wait_for(timeout=5000 * SECONDS)
    widget = page.locator(".picture-slider").first

    def picture():
        return widget.locator("img.shown-picture").evaluate(FETCH)

    before = changed(page, picture, "")
    widget.locator(".noUi-handle").first.focus()
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    slid = changed(page, picture, before)
    widget.get_by_label("Picture").select_option(index=1)
    changed(page, picture, slid)
    assert "dB" in widget.locator(".shown-line").inner_text()
    assert widget.locator(".shown-message").inner_text().strip() == ""


def use_divider_and_upload(page, photograph):
    """Drag the divider, then upload a file: its name and its noise must be said, the result shown."""
    use_slider(page)
    upload = page.locator(".upload").first
    with page.expect_file_chooser() as chooser:
        upload.get_by_role("button").press("Enter")
    chooser.value.set_files(photograph)
    line = changed(page, upload.locator(".shown-line").inner_text, "")
    assert line.startswith(f"{photograph.name}: estimated noise") and f"{photograph.stem}-denoised" in line
    assert upload.locator("img.shown-picture").evaluate(FETCH).startswith(PNG)
    assert upload.locator(".shown-message").inner_text().strip() == ""


@pytest.fixture
def photograph(tmp_path):
    """A small photograph; what notebook 05 makes of it is removed from build/ afterwards."""
    path = tmp_path / f"browser-{secrets.token_hex(4)}.jpg"
    Image.fromarray(np.random.default_rng(0).integers(60, 190, (160, 240, 3), np.uint8)).save(path)
    yield path
    for left in (ROOT / "build").glob(f"{path.stem}-denoised*.png"):
        left.unlink()


@pytest.mark.parametrize("name", ["03_cam_inspection", "04_custom_loss", "05_comparison"])
def test_jupyterlab_on_a_notebook(tmp_path, page, photograph, name):
    use = {"03_cam_inspection": use_explorer, "04_custom_loss": use_slider,
           "05_comparison": lambda page: use_divider_and_upload(page, photograph)}[name]
    notebook = ROOT / "notebooks" / f"{name}.ipynb"
    shutil.copy(notebook, tmp_path)  # JupyterLab saves what it runs
    with server("jupyterlab", "--ip=127.0.0.1", "--allow-root", "--IdentityProvider.token={token}",
                "--ServerApp.root_dir=.", folder=tmp_path) as (address, token):
        page.goto(f"{address}/lab/tree/{notebook.name}?token={token}")
        page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
        page.locator("#jp-main-statusbar").get_by_text(") | Idle").wait_for()  # without a kernel it would ask for one
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        use(page)
        assert page.locator(".jp-OutputArea-output[data-mime-type*=stderr], .jp-RenderedText[data-mime-type*=error]"
                            ).count() == 0
    assert page.complaints == []
