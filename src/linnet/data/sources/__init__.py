"""Labelled pictures from wherever they are, as local files with labels."""

from linnet.data.sources.items import Item, Source
from linnet.data.sources.opening import Pile, open_pile, open_source

__all__ = ["Item", "Pile", "Source", "open_pile", "open_source"]
