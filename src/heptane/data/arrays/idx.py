"""Read IDX, the file format of MNIST, plain or gzip-compressed.

The header is two zero bytes, a dtype code, the number of dimensions, then each dimension as a big-endian uint32. Its size
is checked against the content before memory is allocated.
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
    """Read the array in an IDX file, in the machine's byte order.

    Args:
        path: the file, plain or gzip-compressed.
        max_bytes: largest accepted size of the uncompressed values.
        sha256: expected SHA-256 of the uncompressed content, in hexadecimal; None: not checked.

    Raises:
        InputError: the file is missing, not IDX, damaged, truncated, longer than its header says, or too large.
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
        raise InputError(f"{name} cannot be read ({reason}): download it again") from error


def parse_idx(stream: gzip.GzipFile | IO[bytes], name: str, max_bytes: int, sha256: str | None) -> npt.NDArray[Any]:
    """Read the array in a stream of uncompressed IDX, called ``name`` in messages; raises as :func:`read_idx` does."""
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in DTYPES or not 1 <= magic[3] <= MAX_DIMENSIONS:
        known = f"00 00, a type of {', '.join(f'{code:02x}' for code in DTYPES)}, then 1 to {MAX_DIMENSIONS} dimensions"
        raise InputError(f"{name} is not IDX: it begins with {magic.hex(' ') or 'nothing'}, expected {known}")
    header = stream.read(4 * magic[3])
    if len(header) < 4 * magic[3]:
        raise InputError(f"{name} is truncated in its header: download it again")
    shape = tuple(int.from_bytes(header[i : i + 4], "big") for i in range(0, len(header), 4))
    dtype = np.dtype(DTYPES[magic[2]])
    num_bytes = math.prod(shape) * dtype.itemsize
    if num_bytes > max_bytes:
        raise InputError(f"{name} claims shape {shape}, {num_bytes} bytes: at most {max_bytes} are accepted")
    values = bytearray()
    while len(values) <= num_bytes:  # in pieces: memory grows with the file, not with what the header claims
        piece = stream.read(min(CHUNK_BYTES, num_bytes + 1 - len(values)))
        if not piece:
            break
        values += piece
    if len(values) != num_bytes:
        found = f"only {len(values)}" if len(values) < num_bytes else "more"
        raise InputError(f"{name} has {found} bytes of values, but its header says {num_bytes}: download it again")
    if sha256 and hashlib.sha256(magic + header + values).hexdigest() != sha256:
        raise InputError(f"{name} has the wrong checksum: download it again")
    return np.frombuffer(values, dtype=dtype).reshape(shape).astype(dtype.newbyteorder("="))
