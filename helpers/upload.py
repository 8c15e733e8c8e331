"""A button for a photograph of one's own: what a browser sends is read, treated and shown."""

from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import ipywidgets as widgets
import torch

from helpers.photos import read_photo
from helpers.sliders import Shown, as_uint8

WIDEST = 1800  # pixels of what is sent back to the browser


class Upload(Shown):
    """Take a photograph from the reader's machine and show what becomes of it.

    Args:
        treat: a function of a photograph (3, H, W), float32 in [0, 1], and its file name. It returns a picture
            (H, W, 3) in [0, 1] to show, and a sentence. What it raises is shown in words.

    Controls for code as for a hand: `button`. The sentence stands in `line`, what went wrong in `message`.
    """

    def __init__(self, treat):
        self.treat = treat
        self.button = widgets.FileUpload(accept="image/*", description="Photograph",
                                         tooltip="a picture on this machine; it goes to the kernel and nowhere else")
        super().__init__([self.button])
        self.add_class("upload")
        self.button.observe(lambda _: self.attempt(), "value")

    def make(self):
        """The picture (H, W, 3) uint8 of the last file, at most `WIDEST` wide, and the sentence."""
        *_, file = self.button.value
        name = Path(file["name"]).name
        with TemporaryDirectory() as folder:
            path = Path(folder) / name
            path.write_bytes(file["content"])
            try:
                photo = read_photo(path)
            except ValueError as error:
                raise ValueError(str(error).replace(str(path), name)) from None
        picture, words = self.treat(torch.from_numpy(photo).permute(2, 0, 1), name)
        picture = as_uint8(picture)
        if picture.shape[1] > WIDEST:
            height = max(1, round(picture.shape[0] * WIDEST / picture.shape[1]))
            picture = cv2.resize(picture, (WIDEST, height), interpolation=cv2.INTER_AREA)
        return picture, f"{name}: {words}"
