"""Images as the inputs of a data set: uint8 where they are stored, float32 and standardised where they are used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from heptane.base.errors import DataError, one_line
from heptane.base.lazy import np, torch
from heptane.base.threads import by_parts
from heptane.base.tree import Rows
from heptane.data.images.pixel_cache import fits_in_memory
from heptane.data.images.pixel_store import PixelStore, Unreadable
from heptane.data.images.replaced_images import ReplacedImages
from heptane.data.normalise import standardise, standardise_into


class Images(Rows):
    """The images of one part of a data set, in place of a tensor of inputs.

    Indexing gives what the model takes: float32 (N, C, H, W), standardised. Training reads :meth:`pixels` instead, which go
    to the device as uint8, are augmented there, and then :meth:`finish` ed.

    Args:
        store: the pixels of the whole data set, at the size of training or with room for crops.
        rows: the numbers of this part's images in the store.
        size: (height, width) that the model takes.
        mean, std: per channel, of pixels scaled to [0, 1].
        replaced: those that turn out to be unreadable; None: they are an error.

    Example:
        >>> import heptane as hp                                   # doctest: +SKIP
        >>> images, labels = hp.load_data("photos").train          # doctest: +SKIP
        >>> images.shape, images[0].shape, images[:8].dtype        # doctest: +SKIP
        ((1200, 3, 96, 96), torch.Size([3, 96, 96]), torch.float32)
    """

    def __init__(
        self,
        store: PixelStore,
        rows: Any,
        size: tuple[int, int],
        mean: Sequence[float],
        std: Sequence[float],
        replaced: ReplacedImages | None = None,
    ) -> None:
        self.store, self.rows = store, np.asarray(rows, dtype=np.int64)
        self.image_size, self.mean, self.std, self.replaced = size, tuple(mean), tuple(std), replaced
        self.shape, self.dtype = (len(self.rows), store.channels, *size), torch.float32
        self.nbytes = len(self.rows) * store.row_bytes
        self._resident: torch.Tensor | None = None
        self._where: torch.Tensor | None = None
        """row of each image in ``_resident``"""
        self._keep()

    def _keep(self) -> None:
        """Map the pixels into memory, if they are all decoded and fit."""
        kept = self.store.rows
        if kept is not None and fits_in_memory(len(self.rows), self.store.shape):
            whole = kept.whole(self.rows) if len(self.rows) else None
            if whole is not None:
                self._resident, self._where = whole, torch.from_numpy(self.rows)

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device("cpu") if self._resident is None else self._resident.device

    @property
    def in_memory(self) -> bool:
        """Whether the pixels are in memory, rather than read as they are needed."""
        return self._resident is not None

    def take(self, positions: torch.Tensor) -> torch.Tensor:
        return self.finish(self.pixels(positions))

    def pixels(self, positions: torch.Tensor) -> torch.Tensor:
        """The stored pixels of some images: uint8 (N, C, stored H, stored W), on :attr:`device`."""
        if self._resident is not None and self._where is not None:
            where = self._where.to(positions.device)[positions].to(self._resident.device)
            return self.store.channels_first(_gather(self._resident, where))
        rows = self.rows[positions.cpu().numpy()].tolist()
        try:
            return self.store.read(rows) if self.replaced is None else self.replaced.read(self.store.read, rows)
        except Unreadable as error:
            raise unreadable(self.store, error) from error.__cause__

    def finish(
        self, pixels: torch.Tensor, augment: Any = None, draws: Any = None, *, channels_last: bool = False
    ) -> torch.Tensor:
        """Augment pixels (uint8, or float32 in [0, 255]), fit them to the model's size, and standardise them to float32.

        Args:
            pixels: (N, C, H, W).
            augment: an augmentation that works on pixels, or None.
            draws: its random numbers.
            channels_last: the memory format of the result, else contiguous.
        """
        layout = torch.channels_last if channels_last else torch.contiguous_format
        if pixels.device.type != "cpu" or pixels.dtype != torch.uint8 or not getattr(augment, "by_image", augment is None):
            changed = pixels if augment is None else augment.apply(pixels, draws)
            return standardise(self._fitted(changed).contiguous(memory_format=layout), self.mean, self.std)
        found = torch.empty((len(pixels), pixels.shape[1], *self.image_size), memory_format=layout)

        def part(rows: slice) -> None:
            changed = pixels[rows] if augment is None else augment.apply(pixels[rows], draws[rows])
            standardise_into(found[rows], self._fitted(changed), self.mean, self.std)

        by_parts(part, len(pixels))
        return found

    def _fitted(self, pixels: torch.Tensor) -> torch.Tensor:
        if tuple(pixels.shape[2:]) == self.image_size:
            return pixels
        return torch.nn.functional.interpolate(pixels, size=self.image_size, mode="bilinear", antialias=True)

    def read_ahead(self, positions: torch.Tensor) -> None:
        """Begin to read images that will be needed soon."""
        if self._resident is None:
            self.store.prefetch(self.rows[positions.numpy()].tolist())

    def release(self, positions: torch.Tensor) -> None:
        """Forget what was read ahead."""
        if self._resident is None:
            self.store.forget(self.rows[positions.numpy()].tolist())

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Images:
        """The same images, with their pixels on a device if they are in memory."""
        if self._resident is None or self._where is None or self._resident.device == device:
            return self
        moved = Images.__new__(Images)
        vars(moved).update(vars(self))
        moved._resident = self._resident.index_select(0, self._where).to(device, non_blocking=non_blocking)
        moved._where = torch.arange(len(self))
        return moved

    def __repr__(self) -> str:
        return f"Images(shape={self.shape}, {'in memory' if self.in_memory else 'read as needed'})"

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_resident": None, "_where": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._keep()


def _gather(resident: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
    """Rows of ``resident``; on a CPU without PyTorch's own threads, which spin for a while and slow what comes next."""
    if resident.device.type != "cpu":
        return resident.index_select(0, where)
    found = torch.empty((len(where), *resident.shape[1:]), dtype=resident.dtype)
    by_parts(lambda rows: torch.index_select(resident, 0, where[rows], out=found[rows]), len(where))
    return found


def unreadable(store: PixelStore, error: Unreadable) -> DataError:
    """The message about an image that cannot be read."""
    name = f"{store.images.where}/{store.images.name(error.index)}"
    cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
    return DataError(
        f"image {name!r} cannot be read ({one_line(cause)}): repair or remove it, or skip unreadable files with --skip-bad N"
    )
