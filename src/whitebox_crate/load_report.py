"""LoadReport: what became of each weight when a model was loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class LoadReport:
    """What became of each weight.

    Attributes:
        source: Where the weights came from.
        loaded: Parameters that took the value in the file as it was.
        adapted: Parameters whose value was changed to fit, and how.
        reinitialised: Parameters that have fresh values; never any but the head's.
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
