"""Surfaces in the files of other programs: tables, NetCDF, ParaView, meshes; and theirs in ours.

The room takes and gives values. What a surface is, `flatminima.landscape.loss_surface` says; what
each suffix holds, `save_surface`; what is read, `load_surface`. Libraries that only one kind of
file needs are imported when such a file is written or read.
"""

from flatminima.exchange.load import load_surface
from flatminima.exchange.save import save_surface

__all__ = ["load_surface", "save_surface"]
