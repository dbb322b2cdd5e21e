"""Prints the table of weights in docs/weights.md, from the registry: python docs/weights_table.py"""

from whitebox_crate import get_pretrained_cfg, list_pretrained


def weights_table() -> str:
    """A row for each set of weights, in Markdown."""
    rows = ["| Name | Where | Classes | Licence | Paper | Tried | Notes |", "|---|---|---|---|---|---|---|"]
    for name in list_pretrained():
        cfg = get_pretrained_cfg(name)
        where = "in the package"
        if cfg.hf_hub_id:
            where = f"[{cfg.hf_hub_id}](https://huggingface.co/{cfg.hf_hub_id}): {cfg.file}"
        elif cfg.url:
            where = f"[a page]({cfg.url}): download and convert"
        rows.append(
            f"| `{name}` | {where} | {cfg.num_classes:,} | {cfg.license} | {cfg.paper} | {cfg.checked} | {cfg.notes} |"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    print(weights_table())
