"""Storage: how models use folders and the Hub, which they must not import; `whitebox_crate` provides it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol


class Storage(Protocol):
    """How models are kept in folders and on the Hub."""

    def load(
        self,
        source: str,
        *,
        revision: str | None,
        cache_dir: str | Path | None,
        token: str | bool | None,
        local_files_only: bool,
        force_download: bool,
        model_options: dict[str, Any],
    ) -> Any:
        """A model with its weights from a folder or a repository."""

    def save(self, model: Any, folder: str | Path, repo_id: str) -> Path:
        """Writes a model to a folder and returns the folder. The model's card names the repository."""

    def card(self, model: Any, repo_id: str) -> str:
        """The text of the card of a model."""


provider: Callable[[], Storage]  # `whitebox_crate/__init__.py` sets it once
