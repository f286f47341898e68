"""From a stored study back to a module in hand."""

from typing import TYPE_CHECKING, Any

from flatminima.store import Store, StoreError, files_to_dataset

if TYPE_CHECKING:
    from flatminima.minimum import Minimum


def stored_minimum(
    store: Store, study: str, *, group: str, network: int = 0, checkpoint: str = "end"
) -> "Minimum":
    """A network of a study that has been run, as a `Minimum`.

    `stored_minimum(Store("runs"), "mnist-quick", group="natural").module()` is the network itself.

    Args:
        store: Where the study was run.
        study: The study's name.
        group: The name of one of its groups.
        network: The seed of the network, as in its label `natural/0`.
        checkpoint: "end" of training, or "matched": the first epoch end at or below `match_loss`.

    Returns:
        Weights and buffers, with the training history.

    Raises:
        StoreError: If there is no such study or network, or it never reached the matched loss.
    """
    from flatminima.minimum import Minimum

    if checkpoint not in ("end", "matched"):
        raise StoreError(f"expected checkpoint 'end' or 'matched', got {checkpoint!r}; name one")
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for job in store.manifest(study)["jobs"]:
        if job["kind"] == "network" and store.done("network", job["digest"]):
            settings = store.record("network", job["digest"])["settings"]
            found[settings["group"], settings["network"]] = job
    if (group, network) not in found:
        known = ", ".join(f"{name}/{seed}" for name, seed in found) or "none"
        raise StoreError(
            f"expected a finished network of {study}, got {group}/{network}; there are: {known}"
        )
    files = store.read("network", found[group, network]["digest"])
    name = "last.safetensors" if checkpoint == "end" else "matched.safetensors"
    if name not in files:
        raise StoreError(
            f"expected {group}/{network} of {study} to have a matched checkpoint, got none: it"
            " never reached the study's match_loss; take checkpoint='end'"
        )
    minimum = Minimum.from_bytes(files[name], source=name)
    minimum.history = files_to_dataset("history.zarr", files)
    return minimum
