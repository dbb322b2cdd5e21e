"""Prints the README's table of models, from the registry: python docs/model_table.py"""

import inspect

import torch

from whitebox_crate import create_model, list_models, list_pretrained, model_entrypoint
from whitebox_crate.variants import ALIASES


def model_table() -> str:
    """A row for each registered architecture, in Markdown."""
    rows = [
        "| Name | Short | Parameters | Width | Layers | Heads | Patch | Weights |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in list_models():
        with torch.device("meta"):
            model = create_model(name)
        short = ", ".join(f"`{alias}`" for alias, target in ALIASES.items() if target == name)
        parameters = sum(p.numel() for p in model.parameters()) / 1e6
        patch = inspect.signature(model_entrypoint(name)).parameters["patch_size"].default
        weights = ", ".join(f"`{full.partition('.')[2]}`" for full in list_pretrained(f"{name}.*"))
        shape = f"{model.embed_dim} | {len(model.blocks)} | {model.num_heads} | {patch}"
        rows.append(f"| `{name}` | {short} | {parameters:.2f} M | {shape} | {weights} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(model_table())
