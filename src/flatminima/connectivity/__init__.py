"""How two minima are connected: the loss on the way from one to the other."""

from flatminima.connectivity.line import loss_line

__all__ = ["loss_line"]
