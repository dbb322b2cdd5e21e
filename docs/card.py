"""Draws the picture that others show beside a link to the site: `python docs/card.py`."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import whitebox_crate
from whitebox_crate import segment
from whitebox_crate.segmentation.draw import draw_map

OUT = Path(__file__).parent / "_static" / "card.png"
SAMPLE = Path(whitebox_crate.__file__).parent / "samples" / "coffee.jpg"
SIZE, MARGIN = (1200, 630), 48  # pixels
SMALL = (336, 224)  # of a picture: three fit side by side
LINES = (
    "Vision transformers that you can read:",
    "each layer is one step of an optimisation",
    "that can be written down.",
)


def card() -> Image.Image:
    """The name, what it is, and a photograph with what a network found in it."""
    sheet = Image.new("RGB", SIZE, "white")
    found = segment(SAMPLE)
    map_ = draw_map(found.map, (SMALL[1], SMALL[0]), mode="nearest")
    for number, picture in enumerate((found.photo, map_, found.overlay())):
        sheet.paste(picture.resize(SMALL), (MARGIN + number * (SMALL[0] + MARGIN), SIZE[1] - MARGIN - SMALL[1]))
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, MARGIN), "whitebox-crate", "#1d2327", ImageFont.load_default(76))
    pen.multiline_text((MARGIN, 150), "\n".join(LINES), "#5a6570", ImageFont.load_default(34), spacing=12)
    return sheet


if __name__ == "__main__":
    card().quantize(128).save(OUT, optimize=True)
