"""Preprocess images for a model: decode, fit to one size, normalise per channel."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from heptane.base.errors import InputError, one_line
from heptane.base.lazy import np, torch
from heptane.data.images.image_files import ListedImage, list_files
from heptane.data.images.read_image import FIT, SUFFIXES, decode, read_image
from heptane.data.normalise import standardise
from heptane.data.preprocess import Preprocess, TargetScale, as_array, is_path
from heptane.data.reading import AUTO, parse_colour

if TYPE_CHECKING:
    import numpy.typing as npt

CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class ImagePreprocess(Preprocess):
    """Images as float32 (N, C, H, W), standardised per channel.

    Args:
        size: height and width in pixels; images of another size are scaled to cover it, and cropped.
        channels: 1 (grey), 3 (RGB), or as in the training arrays.
        mean, std: per channel, of pixels scaled so that white is 1.
        white: the value of white in arrays: 255, but 16 for ``digits`` and 1 for float images in [0, 1]. Pixels of files and
            PIL images, where white is 255, are multiplied by ``white`` / 255.
        target: scale of the targets, for regression; None for classes.
        background: behind transparent pixels, as :class:`heptane.Reading` takes it.
    """

    kind: ClassVar[str] = "images"
    size: tuple[int, int]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    white: float = 255.0
    target: TargetScale | None = None
    background: str = AUTO

    def record(self) -> dict[str, Any]:
        means = {"mean": list(self.mean), "std": list(self.std), "white": self.white}
        means["target"] = None if self.target is None else self.target.record()
        fit = {"fit": FIT, "background": self.background}
        return {"kind": self.kind, "size": list(self.size), "channels": self.channels, **means, **fit}

    @classmethod
    def parse(cls, record: Mapping[str, Any]) -> ImagePreprocess:
        """Rebuild from :meth:`record`."""
        height, width = (int(side) for side in record["size"])
        mean, std = (tuple(float(value) for value in record[name]) for name in ("mean", "std"))
        target = TargetScale.parse(record.get("target"))
        return cls(
            (height, width),
            int(record["channels"]),
            mean,
            std,
            float(record["white"]),
            target,
            record.get("background", AUTO),
        )

    def inputs(self, source: Any) -> tuple[list[str], torch.Tensor]:
        """Return names and inputs of images.

        Args:
            source: a file, a folder (with subfolders), a PIL image, an array or tensor of shape (H, W),
                (H, W, C), (C, H, W), (N, H, W), (N, C, H, W) or (N, H, W, C), an ``.npz`` file with ``x``, or a list
                of these.
        """
        names, found = [], []
        for name, pixels in self._each(source):
            names.append(name)
            found.append(pixels)
        if not found:
            raise InputError("no images to predict: pass image files, folders, PIL images or uint8 arrays")
        scaled = standardise(torch.from_numpy(np.stack(found)), self.mean, self.std, self.white)
        return [name or str(index) for index, name in enumerate(names)], scaled

    def _each(self, source: Any) -> Iterator[tuple[str, npt.NDArray[Any]]]:
        """Yield each image's name, or "", and its pixels (C, H, W) before normalisation."""
        if is_path(source):
            path = Path(source).expanduser()
            if path.suffix.lower() == ".npz" and path.is_file():
                from heptane.data.npz import read_npz

                source = read_npz(path, ("x",))[0]["x"]
            else:
                for file in image_files(path):
                    yield str(file), self._from_file(file)
                return
        if isinstance(source, ListedImage):
            yield source.name, self._from_file(source)
            return
        if isinstance(source, (list, tuple)):
            for item in source:
                yield from self._each(item)
            return
        array = as_array(source)
        if array is not None:
            yield from (("", pixels) for pixels in self._from_array(array))
        else:
            yield str(getattr(source, "filename", "") or ""), self._from_picture(source)

    def _from_file(self, file: Path | ListedImage) -> npt.NDArray[Any]:
        try:
            return read_image(file if isinstance(file, Path) else file.read(), self._from_picture)
        except InputError:
            raise
        except Exception as error:  # Pillow's readers raise many types for damaged files
            raise InputError(f"image {str(file)!r} cannot be read ({one_line(error)}): repair or remove it") from error

    def _from_picture(self, picture: Any) -> npt.NDArray[Any]:
        from PIL import Image

        if not isinstance(picture, Image.Image):
            kinds = "a file, a folder, a PIL image, an array or tensor, or a list of these"
            raise InputError(f"a {type(picture).__name__} is not an image: expected {kinds}")
        if self.channels not in (1, 3):
            raise InputError(f"the model takes images of {self.channels} channels, which files do not have: pass arrays")
        if picture.mode == "F":
            raise InputError("the pixels of this image are floats: convert it to 8 or 16 bits")
        pixels = decode(picture, self.size[::-1], self.channels == 1, parse_colour(self.background))
        return pixels if self.white == 255 else (pixels * np.float32(self.white / 255)).astype(np.float32)

    def _from_array(self, array: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
        """Yield the images of an array, channels first; uint8 images of another size are fitted like files."""
        for image in batch(array, self.channels):
            if image.shape == (self.channels, *self.size):
                yield self._checked(image)
            elif self.white == 255 and image.dtype == np.uint8 and len(image) in (1, 3):
                from PIL import Image

                yield self._from_picture(Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)))
            else:
                wanted = f"expected {(self.channels, *self.size)}, or uint8 images of 1 or 3 channels, which are resized"
                raise InputError(f"an image of shape {image.shape} and dtype {image.dtype}: {wanted}")

    def _checked(self, image: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Check that an array's pixels have the range of the training data, and return them as float32."""
        if image.dtype.kind not in "biuf" or not np.isfinite(image).all():
            raise InputError(f"an image of dtype {image.dtype} has values that are not finite numbers: give pixels")
        low, high = float(image.min()), float(image.max())
        white = 255.0 if image.dtype == np.uint8 and self.white == 1 else self.white
        unclear = (image.dtype.kind == "f" or white != self.white) and self.white != 16 and white != 1 and 0 < high <= 1
        if low < 0 or high > white or unclear:
            seen = f"dtype {image.dtype} and values from {low:.4g} to {high:.4g}"
            raise InputError(f"an image has {seen}: expected pixels from 0 to {white:g}, before any normalisation")
        values = np.ascontiguousarray(image, dtype=np.float32)
        return values if white == self.white else values * np.float32(self.white / white)


def image_files(path: Path) -> list[Path]:
    """Return the image file at ``path``, or all in that folder and its subfolders, sorted by name.

    Raises:
        InputError: there is none.
    """
    if not path.exists():
        raise InputError(f"{str(path)!r} does not exist: give image files or a folder of them")
    if not path.is_dir():
        return [path]
    found = [path / name for name in list_files(path, SUFFIXES)[0]]
    if not found:
        raise InputError(f"folder {str(path)!r} and its subfolders have no image: expected {', '.join(SUFFIXES)}")
    return found


def batch(array: npt.NDArray[Any], channels: int) -> npt.NDArray[Any]:
    """Reshape an array of one or several images to (N, C, H, W), for a model with this number of channels.

    Raises:
        InputError: the array does not have 2 to 4 dimensions.
    """
    shape = array.shape
    if array.ndim == 2:
        return array[None, None]
    if array.ndim == 3:
        if shape[2] in CHANNELS and shape[0] not in CHANNELS:  # (H, W, C)
            return array.transpose(2, 0, 1)[None]
        if shape[0] == channels and channels > 1:  # (C, H, W)
            return array[None]
        return array[:, None]
    if array.ndim == 4:
        return channels_first(array)
    raise InputError(f"an array of shape {shape} is not images: expected (H, W), (H, W, C), (N, H, W) or (N, C, H, W)")


def channels_first(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Permute images (N, H, W, C) to (N, C, H, W), if the last dimension is 1, 3 or 4 and the second is not."""
    shape = array.shape
    return array.transpose(0, 3, 1, 2) if shape[3] in CHANNELS and shape[1] not in CHANNELS else array
