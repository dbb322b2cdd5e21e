"""A page on which anyone sees what a network finds in a photograph of theirs: `segment` and `view`, by Gradio.

pip install "whitebox-crate[demo]" && python spaces/app.py
"""

from pathlib import Path

import gradio as gr
from PIL.Image import Image

import whitebox_crate
from whitebox_crate import segment, view
from whitebox_crate.segmentation import METHODS

MODELS = ["crate_nano", "vit_nano"]  # which come with the package
SAMPLES = [str(path) for path in sorted((Path(whitebox_crate.__file__).parent / "samples").glob("*.jpg"))]


def look(photo: Image | None, model: str, method: str) -> tuple[Image, str]:
    """The photograph beside the map and the objects, and the page to play with."""
    if photo is None:
        raise gr.Error("Choose a photograph first.")
    return segment(photo, model, method).panel(), view(photo, model)._repr_html_()


with gr.Blocks(title="whitebox-crate") as app:
    gr.Markdown("# What does the network see?\nIt was taught the names of objects, never their outlines.")
    photo = gr.Image(type="pil", label="Photograph", height=320)
    gr.Examples(SAMPLES, photo)
    with gr.Row():
        model = gr.Radio(MODELS, value=MODELS[0], label="Network")
        method = gr.Radio(list(METHODS), value=next(iter(METHODS)), label="Method")
    button = gr.Button("Look", variant="primary")
    panel = gr.Image(label="Photograph, map, objects", interactive=False, elem_id="panel")
    page = gr.HTML()
    button.click(look, [photo, model, method], [panel, page])

if __name__ == "__main__":
    app.launch()
