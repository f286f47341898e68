"""A `Subspace`: an origin in weight space and a few directions.

Coordinates are all that a `Landscape` is ever asked about; weight vectors are formed inside it.
Three kinds exist, and look the same from outside: the plane (line, space) through given states, the
principal components of a training trajectory, and random directions around one state, which are
drawn anew from their seed whenever they are used.
"""

from flatminima.subspace._names import choose
from flatminima.subspace._subspace import Subspace
from flatminima.subspace._tensors import inner, norm

__all__ = ["Subspace", "choose", "inner", "norm"]
