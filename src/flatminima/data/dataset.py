"""`Dataset`: inputs and targets in memory, handed out in batches that are ready for a model."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from flatminima.types import Images, Labels, Mask, Nested, Real


class Dataset:
    """Samples in memory: `inputs` for a model and `targets` for its loss.

    Image sets keep their images as uint8 and are normalised batch by batch, `(x / 255 - mean) /
    std` in float32; everything that hands inputs out (`batch`, `batches`, `inputs`, `images`)
    gives the normalised values.

    Args:
        inputs: A tensor, or nested dicts, tuples or lists of tensors, each with N leading entries.
            With `mean` and `std` it must be a uint8 tensor `[N, C, H, W]`.
        targets: Likewise; class labels are an int64 tensor `[N]`.
        name: Name of the set, for results and figures.
        split: Which part of it this is.
        classes: Number of classes. Without it, it is taken from the labels, where the targets are
            labels (int64, one dimension, none negative).
        mean: Mean of each channel, in units of the largest pixel value.
        std: Standard deviation of each channel, in the same units.
        changed: Which labels are not the natural ones, `[N]`, if any were randomised.
        digest: Identity of the contents; without it, a hash of everything the set holds.
        class_names: Names of the classes.

    Raises:
        ValueError: Leading lengths differ, labels lie outside the classes, or `mean` and `std` do
            not fit the images.

    Examples:
        >>> data = Dataset(torch.zeros(3, 2), torch.tensor([0, 1, 1]))
        >>> len(data), data.classes
        (3, 2)
    """

    def __init__(
        self,
        inputs: Nested,
        targets: Nested,
        *,
        name: str = "custom",
        split: str = "train",
        classes: int | None = None,
        mean: Sequence[Real] | None = None,
        std: Sequence[Real] | None = None,
        changed: Mask | None = None,
        digest: str | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.name = name
        self.split = split
        self.class_names = None if class_names is None else tuple(class_names)
        self.changed = changed
        self._raw = inputs
        self.targets = targets
        self._digest = digest
        self._mean = None if mean is None else tuple(map(float, mean))
        self._std = None if std is None else tuple(map(float, std))
        self._length = _common_length(inputs, targets, changed)
        self.classes = _number_of_classes(targets, classes)
        self._constants = _constants(inputs, self._mean, self._std)

    def __len__(self) -> int:
        return self._length

    def __repr__(self) -> str:
        return (
            f"Dataset({self.name!r}, {self.split!r}, {len(self)} samples, "
            f"{self.classes} classes, digest {self.digest[:12]})"
        )

    @property
    def inputs(self) -> Nested:
        """All inputs, normalised: much more memory than the uint8 images behind them."""
        return self._normalise(self._raw)

    @property
    def images(self) -> Images:
        """All images, normalised, float `[N, C, H, W]`.

        Raises:
            ValueError: The inputs are not images.
        """
        inputs = self.inputs
        if not isinstance(inputs, Tensor) or inputs.ndim != 4 or not inputs.is_floating_point():
            raise ValueError(
                f"{self.name}: expected inputs that are float images [N, C, H, W], got "
                f"{_describe(inputs)}; use .inputs"
            )
        return inputs

    @property
    def labels(self) -> Labels:
        """The class labels, int64 `[N]`.

        Raises:
            ValueError: The targets are not class labels.
        """
        if not _are_labels(self.targets):
            raise ValueError(
                f"{self.name}: expected targets that are class labels (int64 [N]), got "
                f"{_describe(self.targets)}; use .targets"
            )
        labels: Tensor = self.targets
        return labels

    @property
    def digest(self) -> str:
        """Hexadecimal identity of the contents: equal contents, equal digest."""
        if self._digest is None:
            self._digest = _digest_of(self._raw, self.targets, self._mean, self._std)
        return self._digest

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return next(_leaves(self._raw)).device

    def batch(
        self, selection: slice | Tensor, *, change: Callable[[Nested], Nested] | None = None
    ) -> tuple[Nested, Nested]:
        """The inputs, normalised, and targets of some samples.

        Args:
            selection: A slice, or the int64 positions of the samples on the set's device.
            change: Applied to the inputs as they are stored, before they are normalised.
        """
        inputs = _map(lambda tensor: _pick(tensor, selection), self._raw)
        if self._constants is None and isinstance(selection, slice):
            # A network that works in place must not write to the data.
            inputs = _map(Tensor.clone, inputs)
        if change is not None:
            inputs = change(inputs)
        targets = _map(lambda tensor: _pick(tensor, selection), self.targets)
        return self._normalise(inputs), targets

    def batches(self, size: int) -> Iterator[tuple[Nested, Nested]]:
        """All samples in order, `size` at a time; the last batch holds what is left.

        Raises:
            ValueError: `size` is below 1.
        """
        if size < 1:
            raise ValueError(f"expected a batch size of at least 1, got {size}; give a larger one")
        for start in range(0, len(self), size):
            yield self.batch(slice(start, start + size))

    def subset(self, indices: Tensor) -> "Dataset":
        """The samples at these int64 positions, in this order.

        Raises:
            ValueError: There are none, or one lies outside the set.
        """
        if indices.dtype != torch.int64 or indices.ndim != 1 or not len(indices):
            raise ValueError(
                f"expected int64 positions [M] with M > 0, got {_describe(indices)}; "
                "give at least one position"
            )
        if int(indices.min()) < 0 or int(indices.max()) >= len(self):
            raise ValueError(
                f"expected positions from 0 to {len(self) - 1}, got {int(indices.min())} to "
                f"{int(indices.max())}; leave out those outside"
            )
        digest = None
        if self._digest is not None:
            chosen = hashlib.sha256(indices.cpu().numpy().tobytes()).hexdigest()
            digest = hashlib.sha256(f"subset {self._digest} {chosen}".encode()).hexdigest()
        where = indices.to(self.device)
        return self._with(lambda tensor: tensor.index_select(0, where), digest=digest)

    def to(self, device: torch.device | str) -> "Dataset":
        """The same set with its tensors on `device`."""
        return self._with(lambda tensor: tensor.to(device), digest=self._digest)

    def relabelled(self, labels: Labels, changed: Mask, *, digest: str) -> "Dataset":
        """The same inputs under other class labels.

        Args:
            labels: The new labels, int64 `[N]`.
            changed: Which of them differ from the natural ones, bool `[N]`.
            digest: Identity of the new set.
        """
        return Dataset(
            self._raw,
            labels,
            name=self.name,
            split=self.split,
            classes=self.classes,
            mean=self._mean,
            std=self._std,
            changed=changed,
            digest=digest,
            class_names=self.class_names,
        )

    def _normalise(self, stored: Nested) -> Nested:
        """What a model takes, from what is stored."""
        if self._constants is None:
            return stored
        scale, shift = self._constants
        return stored.to(torch.float32).mul_(scale).add_(shift)

    def _with(self, change: Callable[[Tensor], Tensor], *, digest: str | None) -> "Dataset":
        """The same set with every tensor changed alike."""
        return Dataset(
            _map(change, self._raw),
            _map(change, self.targets),
            name=self.name,
            split=self.split,
            classes=self.classes,
            mean=self._mean,
            std=self._std,
            changed=None if self.changed is None else change(self.changed),
            digest=digest,
            class_names=self.class_names,
        )


def _map(change: Callable[[Tensor], Tensor], nested: Nested) -> Nested:
    """The same structure with every tensor changed."""
    if isinstance(nested, Tensor):
        return change(nested)
    if isinstance(nested, dict):
        return {key: _map(change, value) for key, value in nested.items()}
    if isinstance(nested, tuple) and hasattr(nested, "_fields"):
        return type(nested)(*(_map(change, value) for value in nested))
    return type(nested)(_map(change, value) for value in nested)


def _leaves(nested: Nested) -> Iterator[Tensor]:
    """The tensors of a structure, in its order."""
    if isinstance(nested, Tensor):
        yield nested
    elif isinstance(nested, dict):
        for value in nested.values():
            yield from _leaves(value)
    elif isinstance(nested, (tuple, list)):
        for value in nested:
            yield from _leaves(value)
    else:
        raise ValueError(
            f"expected tensors, or dicts, tuples or lists of them, got {type(nested).__name__}; "
            "turn arrays into tensors with torch.as_tensor"
        )


def _pick(tensor: Tensor, selection: slice | Tensor) -> Tensor:
    """Some rows; `index_select` is quicker than indexing, and slices do not copy."""
    return tensor[selection] if isinstance(selection, slice) else tensor.index_select(0, selection)


def _describe(nested: Nested) -> str:
    """What an error calls a value."""
    if isinstance(nested, Tensor):
        return f"{str(nested.dtype).removeprefix('torch.')} {list(nested.shape)}"
    return type(nested).__name__


def _are_labels(targets: Nested) -> bool:
    return isinstance(targets, Tensor) and targets.dtype == torch.int64 and targets.ndim == 1


def _common_length(inputs: Nested, targets: Nested, changed: Tensor | None) -> int:
    """The number of samples, which every tensor must share."""
    tensors = [*_leaves(inputs), *_leaves(targets)] + ([] if changed is None else [changed])
    lengths = {len(tensor) if tensor.ndim else 0 for tensor in tensors}
    if len(lengths) != 1 or lengths == {0}:
        raise ValueError(
            "expected inputs, targets and mask with the same number of samples (at least one), "
            f"got leading lengths {sorted(lengths)}; pair every input with a target"
        )
    return lengths.pop()


def _number_of_classes(targets: Nested, classes: int | None) -> int | None:
    """The number of classes, given or found; None where the targets are not labels."""
    if not _are_labels(targets):
        return classes
    least, most = int(targets.min()), int(targets.max())
    if classes is None:
        return most + 1 if least >= 0 else None
    if least < 0 or most >= classes:
        raise ValueError(
            f"expected labels from 0 to {classes - 1} ({classes} classes), got {least} to {most}; "
            "give the right number of classes"
        )
    return classes


def _constants(
    inputs: Nested, mean: tuple[float, ...] | None, std: tuple[float, ...] | None
) -> tuple[Tensor, Tensor] | None:
    """Factor and summand per channel that make `(x / 255 - mean) / std` of a pixel value x."""
    if mean is None and std is None:
        return None
    if mean is None or std is None:
        raise ValueError("expected both mean and std, got only one of them; give both or neither")
    if not isinstance(inputs, Tensor) or inputs.dtype != torch.uint8 or inputs.ndim != 4:
        raise ValueError(
            f"expected uint8 images [N, C, H, W] to normalise, got {_describe(inputs)}; "
            "leave out mean and std for other inputs"
        )
    channels = inputs.shape[1]
    if len(mean) != channels or len(std) != channels or min(std) <= 0:
        raise ValueError(
            f"expected a mean and a positive std for each of {channels} channels, got {mean} and "
            f"{std}; give one of each for every channel"
        )
    wide = torch.tensor([mean, std], dtype=torch.float64)
    scale = (1 / (255 * wide[1])).float().view(1, channels, 1, 1).to(inputs.device)
    shift = (-wide[0] / wide[1]).float().view(1, channels, 1, 1).to(inputs.device)
    return scale, shift


def _digest_of(inputs: Nested, targets: Nested, *constants: Any) -> str:
    """A hash over values, element types, shapes and structure."""
    state = hashlib.sha256(repr(("dataset", 1, *constants)).encode())

    def visit(nested: Nested) -> None:
        if isinstance(nested, Tensor):
            state.update(f"<{nested.dtype} {tuple(nested.shape)}>".encode())
            content = nested.detach().cpu().contiguous().flatten().view(torch.uint8)
            state.update(content.numpy().tobytes())
        elif isinstance(nested, dict):
            for key, value in nested.items():
                state.update(f"<key {key!r}>".encode())
                visit(value)
        else:
            state.update(f"<sequence {len(nested)}>".encode())
            for value in nested:
                visit(value)

    visit(inputs)
    state.update(b"<targets>")
    visit(targets)
    return state.hexdigest()
