"""view: a photograph and what models see in it, as one page to play with in a browser."""

from .pages import Page
from .viewer import view, view_photographs

__all__ = ["Page", "view", "view_photographs"]
