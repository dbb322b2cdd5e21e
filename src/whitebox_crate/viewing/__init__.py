"""view: an interactive page of photographs and what models see in them, for a browser."""

from .pages import Page
from .viewer import view, view_photographs

__all__ = ["Page", "view", "view_photographs"]
