"""Where a network keeps its tensors, so that those of a point can take their places."""

from collections.abc import Mapping

from torch import Tensor, nn


class Places:
    """The places of a network's tensors. While entered others may be put there.

    `torch.func.functional_call` looks for the places at every call, which small networks feel. It
    is what defines the answer all the same; see `_reference`.

    Args:
        network: As it is now: modules that are exchanged later are not noticed.
    """

    def __init__(self, network: nn.Module) -> None:
        named = [*network.named_parameters(), *network.named_buffers()]
        self._names = {name for name, _ in named}
        modules = [*network.named_modules(remove_duplicate=False)]
        kept = [
            (name, key, holder, value)
            for name, module in modules
            for holder in (module._parameters, module._buffers)
            for key, value in holder.items()
            if value is not None
        ]
        # A tensor that several layers share is put into all of its places, by any of its names.
        shared: dict[int, list[tuple[dict[str, Tensor], str, Tensor]]] = {}
        for _, key, holder, value in kept:
            shared.setdefault(id(value), []).append((holder, key, value))
        self._places = {
            (f"{name}.{key}" if name else key): shared[id(value)] for name, key, _, value in kept
        }

    def put(self, state: Mapping[str, Tensor]) -> None:
        """Let the network compute with these.

        Raises:
            KeyError: Unless they have the names of its tensors, each of them.
        """
        if state.keys() != self._names:
            reached = {id(own) for name in state for _, _, own in self._places[name]}
            missing = [name for name in self._names if id(self._places[name][0][2]) not in reached]
            if missing:
                raise KeyError(f"no tensors for {', '.join(sorted(missing))}")
        for name, value in state.items():
            for holder, key, _ in self._places[name]:
                holder[key] = value

    def __enter__(self) -> "Places":
        return self

    def __exit__(self, *_error: object) -> None:
        for places in self._places.values():
            for holder, key, own in places:
                holder[key] = own
