"""Lists the versions of the site that lie in a folder, for the menu in its header: `python docs/versions.py html`.

In the folder itself lies the site of the main branch, and in each folder `v1.2.3` that of a release.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

SITE = "https://whitebox-crate.github.io/whitebox-crate/"


def versions(site: Path) -> list[dict[str, str]]:
    """What the theme's menu reads: main, then the releases, the newest first."""
    numbers = {tuple(map(int, name[1:].split("."))): name for name in _releases(site)}
    newest_first = [numbers[number] for number in sorted(numbers, reverse=True)]
    return [{"version": "main", "url": SITE}, *({"version": name, "url": f"{SITE}{name}/"} for name in newest_first)]


def _releases(site: Path) -> list[str]:
    return [folder.name for folder in site.iterdir() if re.fullmatch(r"v\d+(\.\d+)*", folder.name)]


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    (folder / "versions.json").write_text(json.dumps(versions(folder), indent=1), encoding="utf-8")
