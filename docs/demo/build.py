"""Builds the live demo: a page on which a model that comes with the package runs in the visitor's browser.

    python docs/demo/build.py docs/_build/demo

needs `pip install -e ".[images,onnx]"`, and npm, which fetches onnxruntime-web in the version of package-lock.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from whitebox_crate import ImageTransformer, capture, create_model
from whitebox_crate.analysis.batches import STATES
from whitebox_crate.models import CrateBlock
from whitebox_crate.segmentation import default_layer
from whitebox_crate.viewing.pages import document, page_script

HERE = Path(__file__).parent
SAMPLE = HERE.parents[1] / "src" / "whitebox_crate" / "samples" / "coffee.jpg"
MODEL = "crate_nano"
RUNTIME = ("ort.wasm.min.js", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
OUTPUTS = ["logits", "queries", "keys", "output", "grams", "head_grams", "nonzero"]
LARGEST = 256  # rows and columns of patches
# Beside the page's own script: the runtime, which is WebAssembly, and the files that lie beside the page.
ALLOWED = " 'self' 'wasm-unsafe-eval'; connect-src 'self'"


class Readable(nn.Module):
    """A model that returns what the page shows of one photograph, beside its logits.

    Shape:
        - Input: (1, 3, height, width), float32.
        - Output: `OUTPUTS`: logits (1, classes); queries and keys (layers, heads, tokens, head_dim); the patches after
          each layer (layers, patches, dim); of each state of each layer Z^T Z of Z = LN(state), (layers * 3, dim, dim),
          the same of each head's keys, (layers * 3, heads, head_dim, head_dim), and the share that is not zero,
          (layers * 3).
    """

    def __init__(self, model: ImageTransformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        with capture(self.model, *STATES) as trace:
            logits = self.model(images)
        heads: list[tuple[Tensor, Tensor]] = []
        sums: list[tuple[Tensor, Tensor, Tensor]] = []
        for layer in trace.layers:
            for state in STATES:
                z = trace[state, layer]
                queries, keys, seen = _projected(self.model.blocks[layer], z)
                sums.append((seen.mT @ seen, keys.mT @ keys, (z != 0).float().mean()))
                if state == "tokens":  # what attention sees
                    heads.append((queries, keys))
        output = torch.stack([trace["output", layer][0, self.model.num_prefix_tokens :] for layer in trace.layers])
        return logits, *_stacked(heads), output, *_stacked(sums)


def _projected(block: Any, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys (heads, tokens, head_dim) of a state (1, tokens, dim), and Z = LN(state), (tokens, dim)."""
    seen = block.norm1(state)
    queries, keys, _ = block.attention.split_heads(block.attention.qkv(seen))
    return queries[0], keys[0], seen[0]


def _stacked(rows: list[Any]) -> list[Tensor]:
    return [torch.stack(column) for column in zip(*rows, strict=True)]


def build(out: Path, runtime: Path | None = None) -> None:
    """Writes the page, the model, a sample and the runtime into a folder that any host of pages can serve.

    Args:
        out: The folder.
        runtime: `dist` of onnxruntime-web; fetched if None.
    """
    out.mkdir(parents=True, exist_ok=True)
    model = create_model(MODEL, pretrained=True, dynamic_img_size=True).eval().requires_grad_(False)
    _export(model, out / f"{MODEL}.onnx")
    shutil.copy(SAMPLE, out)
    (out / "index.html").write_text(_page(model), encoding="utf-8")
    if runtime is None:
        with tempfile.TemporaryDirectory() as folder:
            _copy_runtime(_fetch_runtime(Path(folder)), out)
    else:
        _copy_runtime(runtime, out)


def _export(model: ImageTransformer, file: Path) -> None:
    height, width = model.patch_embed.patch_size
    rows, columns = Dim("rows", min=2, max=LARGEST), Dim("columns", min=2, max=LARGEST)
    example = torch.zeros(1, 3, 16 * height, 20 * width)
    program = torch.export.export(
        Readable(model), (example,), dynamic_shapes={"images": {2: height * rows, 3: width * columns}}
    )
    exported = torch.onnx.export(program, dynamo=True, verbose=False, input_names=["images"], output_names=OUTPUTS)
    assert exported is not None  # None is what the older exporter gives
    exported.save(str(file))


def _page(model: ImageTransformer) -> str:
    facts = json.dumps(_facts(model)).replace("<", "\\u003c")
    scripts = [page_script(), *((HERE / name).read_text("utf-8") for name in ("photos.js", "rates.js", "live.js"))]
    before = f'<script type="application/json" id="model">{facts}</script>\n<script src="{RUNTIME[0]}"></script>'
    intro, style = ((HERE / name).read_text("utf-8") for name in ("intro.html", "live.css"))
    return document("\n".join(scripts), before=before, intro=intro, style=style, allowed=ALLOWED)


def _facts(model: ImageTransformer) -> dict[str, Any]:
    """What `live.js` knows of the model."""
    cfg, block = model.pretrained_cfg, model.blocks[0]
    assert isinstance(block, CrateBlock)
    head = cfg.attention_head
    return {
        "name": MODEL,
        "file": f"{MODEL}.onnx",
        "sample": SAMPLE.name,
        "patch": model.patch_embed.patch_size[0],
        "mean": cfg.mean,
        "std": cfg.std,
        "layers": len(model.blocks),
        "heads": model.num_heads,
        "width": block.mssa.head_dim,
        "dim": model.embed_dim,
        "start": {"layer": default_layer(model), "head": model.num_heads if head is None else head},
        "labels": cfg.label_names,
    }


def _fetch_runtime(folder: Path) -> Path:
    for name in ("package.json", "package-lock.json"):
        shutil.copy(HERE / name, folder)
    subprocess.run(["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"], cwd=folder, check=True)
    return folder / "node_modules" / "onnxruntime-web" / "dist"


def _copy_runtime(dist: Path, out: Path) -> None:
    for name in RUNTIME:
        shutil.copy(dist / name, out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder")
    parser.add_argument("--runtime", type=Path, help="dist of onnxruntime-web (default: fetched by npm)")
    options = parser.parse_args()
    build(options.out, options.runtime)
