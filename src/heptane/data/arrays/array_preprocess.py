"""Preprocess arrays of numbers for a model: float32, standardized with statistics of the training part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from heptane.base.errors import InputError, one_line
from heptane.base.lazy import np, torch
from heptane.data.preprocess import Preprocess, TargetScale, as_array, is_path, numbered


@dataclass(frozen=True)
class ArrayPreprocess(Preprocess):
    """Numbers of shape (N, \\*shape) as standardized float32.

    Args:
        shape: of one sample.
        mean, std: one number per entry of a sample's first dimension, or one for all; (): unchanged values.
        clip: largest absolute value after standardization; None: no limit.
        target: scale of the targets, for regression; None for classes.
    """

    kind: ClassVar[str] = "arrays"
    shape: tuple[int, ...]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    clip: float | None = None
    target: TargetScale | None = None

    def record(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "shape": list(self.shape),
            "mean": list(self.mean),
            "std": list(self.std),
            "clip": self.clip,
            "target": None if self.target is None else self.target.record(),
        }

    @classmethod
    def parse(cls, record: Mapping[str, Any]) -> ArrayPreprocess:
        """Rebuild from :meth:`record`."""
        mean, std = (tuple(float(value) for value in record[name]) for name in ("mean", "std"))
        clip = record["clip"]
        shape = tuple(int(size) for size in record["shape"])
        return cls(shape, mean, std, None if clip is None else float(clip), TargetScale.parse(record.get("target")))

    def inputs(self, source: Any) -> tuple[list[str], torch.Tensor]:
        """Return names and inputs of arrays.

        Args:
            source: an ``.npz`` file with ``x``, an ``.npy`` file, or an array, tensor or list of numbers of shape (N, ...),
                or of one sample.
        """
        from heptane.data.npz import read_npz, to_float

        array = as_array(source)
        if is_path(source):
            path = Path(source).expanduser()
            array = read_npy(path) if path.suffix.lower() == ".npy" else read_npz(path, ("x",))[0]["x"]
        elif array is None:
            try:
                array = np.asarray(source)
            except Exception as error:
                raise InputError(f"a {type(source).__name__} is not an array of numbers ({one_line(error)})") from error
        if array.shape == self.shape:
            array = array[None]
        if array.dtype.kind not in "biuf" or array.shape[1:] != self.shape or not len(array):
            wanted = f"numbers of shape (N, {', '.join(map(str, self.shape))}), as in training"
            raise InputError(f"x has dtype {array.dtype} and shape {array.shape}: expected {wanted}")
        return numbered(len(array)), self.apply(to_float("x", array))

    def apply(self, values: torch.Tensor) -> torch.Tensor:
        """Standardize float32 values of shape (N, \\*shape)."""
        if not self.mean:
            return values
        view = (1, -1, *[1] * (len(self.shape) - 1))
        mean, std = (torch.tensor(each, dtype=torch.float32).view(view) for each in (self.mean, self.std))
        made = (values - mean) / std
        return made if self.clip is None else made.clamp_(-self.clip, self.clip)


def read_npy(path: Path) -> Any:
    """Read the array in an ``.npy`` file."""
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{str(path)!r} cannot be read ({one_line(error)}): write it with np.save") from error
