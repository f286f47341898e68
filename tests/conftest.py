"""Every test runs with the shapes in the annotations checked (jaxtyping and beartype)."""

from jaxtyping import install_import_hook

install_import_hook("flatminima", "beartype.beartype")
