"""Checkpoints from anywhere, read as data, under the names of a network.

`read` takes tensors from files without running anything in them; `fit` finds each a name there.
"""

from flatminima.checkpoints.read import load_state

__all__ = ["load_state"]
