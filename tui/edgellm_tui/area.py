"""A field of several lines that may be taken away while the screen is being drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual.strip import Strip
from textual.widgets import TextArea

if TYPE_CHECKING:
    from textual.geometry import Region


class Area(TextArea):
    """Textual's, but blank once it is out of the page.

    A frame that still has it would ask for the colours of parents it has no more, and Textual takes the theme's
    instead: in the themes of a terminal's own 16 colours these have names that Rich does not know, which ended the app.
    """

    def render_lines(self, crop: Region) -> list[Strip]:
        """Its lines as strips."""
        if not self.is_attached:
            return [Strip.blank(crop.width)] * crop.height
        return super().render_lines(crop)
