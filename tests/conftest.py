"""Every test runs with the shapes in the annotations checked (jaxtyping and beartype)."""

import hypothesis
from jaxtyping import install_import_hook

install_import_hook("flatminima", "beartype.beartype")

# Examples are not timed: on a busy machine a deadline fails without a reason. Derandomised, so that
# a failure is found again.
hypothesis.settings.register_profile("here", deadline=None, derandomize=True)
hypothesis.settings.load_profile("here")
