"""The command line: `flatminima run | status | report | verify | publish | datasets`.

Answers that need no computation (`status`, `datasets`, "nothing to do") import neither torch nor
xarray. Exit codes: 0 done, 1 the work failed or was stopped, 2 bad usage or bad input.
"""

from flatminima.cli._main import main

__all__ = ["main"]
