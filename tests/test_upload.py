"""The upload button: what comes in is treated and shown, and what is no photograph is named."""

import io
from datetime import UTC, datetime

import cv2
import numpy as np
import pytest
from PIL import Image

from app.sliders import WIDEST, Upload


def jpeg(height, width):
    content = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(content, "JPEG")
    return content.getvalue()


def send(widget, name, content):
    """What a browser does when somebody has chosen a file."""
    widget.button.value = ({"name": name, "type": "", "size": len(content), "content": content,
                            "last_modified": datetime(2026, 1, 1, tzinfo=UTC)},)


@pytest.fixture
def widget():
    def treat(photo, name):
        if name == "wall.jpg":
            return photo.permute(1, 2, 0).numpy(), f"{tuple(photo.shape)}"
        return np.zeros((10, 4000, 3), np.float32), "wide"
    return Upload(treat)


def test_a_photograph_is_treated_and_shown(widget):
    send(widget, "wall.jpg", jpeg(40, 60))
    shown = cv2.imdecode(np.frombuffer(widget.image.value, np.uint8), cv2.IMREAD_COLOR)
    assert shown.shape == (40, 60, 3) and abs(int(shown[20, 30, 0]) - 90) < 3
    assert widget.line.value == "wall.jpg: (3, 40, 60)" and widget.message.value == ""


def test_what_is_sent_back_is_not_wider_than_a_screen(widget):
    send(widget, "panorama.jpg", jpeg(8, 8))
    assert cv2.imdecode(np.frombuffer(widget.image.value, np.uint8), cv2.IMREAD_COLOR).shape[1] == WIDEST


@pytest.mark.parametrize("content", [b"", b"no picture", jpeg(40, 60)[:200]], ids=["empty", "text", "truncated"])
def test_what_is_no_photograph_is_named_and_the_last_picture_stays(widget, content):
    send(widget, "wall.jpg", jpeg(40, 60))
    before = widget.image.value
    send(widget, "<b>broken.jpg", content)
    assert "&lt;b&gt;broken.jpg" in widget.message.value and "/tmp" not in widget.message.value
    assert widget.image.value == before
    send(widget, "wall.jpg", jpeg(44, 60))
    assert widget.message.value == ""
