"""Geometry of molecules: rigid frames."""

from paperops.geometry.frames import Frames

__all__ = ["Frames"]
