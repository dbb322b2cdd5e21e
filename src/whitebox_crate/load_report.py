"""LoadReport: what happened to each weight when a model was loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ._tables import html_table


@dataclass(frozen=True)
class LoadReport:
    """What happened to each weight.

    Attributes:
        source: Where the weights came from.
        loaded: Parameters that took the value in the file unchanged.
        adapted: Parameters whose value was changed to fit, and how.
        reinitialised: Parameters with fresh values; only the head can be among them.
        unused: Names in the file that were left out: a head for other classes, or what a conversion drops.
    """

    source: str
    loaded: tuple[str, ...]
    adapted: Mapping[str, str]
    reinitialised: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} tensors from {self.source}"]
        parts += [f"adapted {name}: {how}" for name, how in self.adapted.items()]
        parts += [f"re-initialised {name}" for name in self.reinitialised]
        parts += [f"unused {name}" for name in self.unused]
        return "; ".join(parts)

    def _repr_html_(self) -> str:
        """The weights that were changed or left out, as an HTML table for notebooks."""
        changes = [
            *((name, f"adapted: {how}") for name, how in self.adapted.items()),
            *((name, "re-initialised") for name in self.reinitialised),
            *((name, "unused") for name in self.unused),
        ]
        return html_table([(f"{len(self.loaded)} tensors from {self.source}", "what happened"), *changes])
