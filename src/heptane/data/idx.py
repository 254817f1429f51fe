"""Read IDX, the format of MNIST's files: a short header, then the values; plain or gzip-compressed.

The header is two zero bytes, a code for the type, the number of dimensions, then each dimension as a big-endian uint32.
It is believed only after the size it implies has been checked, so that a false one cannot claim the memory.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from heptane.base.errors import InputError
from heptane.base.lazy import np

if TYPE_CHECKING:
    import numpy.typing as npt

DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
MAX_DIMENSIONS = 8
CHUNK_BYTES = 1 << 20


def read_idx(path: Path, *, max_bytes: int = 1 << 30, sha256: str | None = None) -> npt.NDArray[Any]:
    """The array in an IDX file, compressed by gzip or not, in the machine's byte order.

    Args:
        path: the file.
        max_bytes: the most that the uncompressed values may take.
        sha256: what the SHA-256 of the uncompressed content must be, in hexadecimal; None: anything.

    Raises:
        InputError: the file is missing, not IDX, damaged, cut short, longer than its header says, or too large.
    """
    name = f"IDX file {str(path)!r}"
    try:
        with path.open("rb") as file:
            is_gzip = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            with gzip.GzipFile(fileobj=file) if is_gzip else file as stream:
                return parse_idx(stream, name, max_bytes, sha256)
    except (OSError, EOFError, zlib.error) as error:
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise InputError(f"{name} cannot be read ({reason}): fetch it again") from error


def parse_idx(stream: gzip.GzipFile | IO[bytes], name: str, max_bytes: int, sha256: str | None) -> npt.NDArray[Any]:
    """The array in a stream of uncompressed IDX; ``name`` is what messages call it. Raises as :func:`read_idx` does."""
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in DTYPES or not 1 <= magic[3] <= MAX_DIMENSIONS:
        known = f"00 00, a type of {', '.join(f'{code:02x}' for code in DTYPES)}, then 1 to {MAX_DIMENSIONS} dimensions"
        raise InputError(f"{name} does not hold IDX: it begins with {magic.hex(' ') or 'nothing'}, expected {known}")
    header = stream.read(4 * magic[3])
    if len(header) < 4 * magic[3]:
        raise InputError(f"{name} is cut short in its header: fetch it again")
    shape = tuple(int.from_bytes(header[i : i + 4], "big") for i in range(0, len(header), 4))
    dtype = np.dtype(DTYPES[magic[2]])
    num_bytes = math.prod(shape) * dtype.itemsize
    if num_bytes > max_bytes:
        raise InputError(f"{name} claims shape {shape}, {num_bytes} bytes: {max_bytes} is the most accepted")
    values = bytearray()
    while len(values) <= num_bytes:  # in pieces: memory grows with what is there, not with what the header claims
        piece = stream.read(min(CHUNK_BYTES, num_bytes + 1 - len(values)))
        if not piece:
            break
        values += piece
    if len(values) != num_bytes:
        found = f"only {len(values)}" if len(values) < num_bytes else "more"
        raise InputError(f"{name} has {found} bytes of values where its header says {num_bytes}: fetch it again")
    if sha256 and hashlib.sha256(magic + header + values).hexdigest() != sha256:
        raise InputError(f"{name} has the wrong checksum: fetch it again")
    return np.frombuffer(values, dtype=dtype).reshape(shape).astype(dtype.newbyteorder("="))
