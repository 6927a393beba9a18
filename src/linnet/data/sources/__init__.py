"""Labelled pictures from wherever they are, as local files with labels."""

from linnet.data.sources.items import Item, Source
from linnet.data.sources.opening import open_source

__all__ = ["Item", "Source", "open_source"]
