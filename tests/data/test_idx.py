"""IDX files: read as written; damaged ones are refused without allocating what their header claims."""

from __future__ import annotations

import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest

from heptane import InputError
from heptane.data.arrays.idx import CHUNK_BYTES, read_idx

CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx_bytes(array: np.ndarray) -> bytes:
    code = CODES[array.dtype.str[1:]]
    header = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("kind", CODES)
@pytest.mark.parametrize("compress", [gzip.compress, bytes])
def test_every_type_is_read_as_it_was_written_in_native_byte_order(tmp_path, kind, compress):
    array = (np.arange(24).reshape(2, 3, 4) * 5 - (0 if kind == "u1" else 50)).astype(kind)
    read = read_idx(write(tmp_path / "a.idx", compress(idx_bytes(array))))
    assert read.dtype == np.dtype(kind)
    assert read.dtype.isnative
    assert np.array_equal(read, array)
    read[0] = 0  # a copy of its own, which can be written to


@pytest.mark.parametrize("shape", [(1,), (0,), (0, 28, 28), (1, 1, 1, 1, 1, 1, 1, 1)])
def test_sizes_of_one_and_none(tmp_path, shape):
    assert read_idx(write(tmp_path / "a.idx", idx_bytes(np.zeros(shape, "u1")))).shape == shape


@pytest.mark.parametrize(
    "content",
    [b"", b"\0\0", b"\0\0\x08", b"\x89PNG\r\n", b"\0\0\x0a\x01\0\0\0\x01\x05", b"\0\0\x08\0", b"\0\0\x08\x09" + bytes(36)],
)
def test_what_is_not_idx_is_refused_with_its_first_bytes(tmp_path, content):
    path = write(tmp_path / "labels.idx", content)
    with pytest.raises(InputError, match=r"labels\.idx' is not IDX: it begins with .*expected 00 00"):
        read_idx(path)


def test_every_cut_is_refused_plain_and_compressed(tmp_path):
    plain = idx_bytes(np.arange(6, dtype="i2").reshape(2, 3))
    for content in (plain, gzip.compress(plain)):
        for size in range(len(content)):
            with pytest.raises(InputError, match=r"a\.idx"):
                read_idx(write(tmp_path / "a.idx", content[:size]))


def test_a_header_that_claims_more_is_named_with_both_counts(tmp_path):
    content = b"\0\0\x08\x01" + struct.pack(">I", 10) + bytes(7)
    with pytest.raises(InputError, match="only 7 bytes of values, but its header says 10: download it again"):
        read_idx(write(tmp_path / "a.idx", content))


def test_a_header_that_claims_less_is_refused(tmp_path):
    content = b"\0\0\x08\x01" + struct.pack(">I", 10) + bytes(11)
    with pytest.raises(InputError, match="has more bytes of values, but its header says 10"):
        read_idx(write(tmp_path / "a.idx", content))


@pytest.mark.parametrize("compress", [gzip.compress, bytes])
def test_one_byte_too_many_is_noticed_where_a_piece_ends(tmp_path, compress):
    content = b"\0\0\x08\x01" + struct.pack(">I", CHUNK_BYTES) + bytes(CHUNK_BYTES + 1)
    path = write(tmp_path / "a.idx", compress(content[:-1]))
    assert read_idx(path).shape == (CHUNK_BYTES,)
    with pytest.raises(InputError, match="has more bytes"):
        read_idx(write(path, compress(content)))


def test_a_header_that_claims_petabytes_is_refused_before_reading(tmp_path):
    content = b"\0\0\x0e\x03" + struct.pack(">3I", 2**32 - 1, 2**32 - 1, 2**32 - 1)
    with pytest.raises(
        InputError, match=r"claims shape \(4294967295, 4294967295, 4294967295\).*at most 1073741824 are accepted"
    ):
        read_idx(write(tmp_path / "a.idx", content))


def test_the_most_accepted_is_a_limit_that_includes_itself(tmp_path):
    path = write(tmp_path / "a.idx", idx_bytes(np.zeros(100, "i4")))
    assert read_idx(path, max_bytes=400).shape == (100,)
    with pytest.raises(InputError, match="at most 399 are accepted"):
        read_idx(path, max_bytes=399)


def test_a_gzip_bomb_stops_at_the_size_its_header_gives(tmp_path):
    content = b"\0\0\x08\x01" + struct.pack(">I", 10) + bytes(64 << 20)
    with pytest.raises(InputError, match="has more bytes"):
        read_idx(write(tmp_path / "a.idx.gz", gzip.compress(content)))


def test_checksum_is_of_the_uncompressed_content(tmp_path):
    plain = idx_bytes(np.arange(4, dtype="u1"))
    sha256 = hashlib.sha256(plain).hexdigest()
    for level in (1, 9):
        read_idx(write(tmp_path / "a.gz", gzip.compress(plain, level, mtime=level)), sha256=sha256)
    with pytest.raises(InputError, match=r"a\.gz' has the wrong checksum: download it again"):
        read_idx(tmp_path / "a.gz", sha256="0" * 64)


def test_damage_inside_gzip_is_noticed_without_a_checksum_to_compare(tmp_path):
    content = bytearray(gzip.compress(idx_bytes(np.arange(200, dtype="u1")), 0))
    content[-12] ^= 1  # a value; the CRC in the trailer no longer fits
    with pytest.raises(InputError, match=r"cannot be read .*CRC"):
        read_idx(write(tmp_path / "a.gz", bytes(content)))


def test_missing_file_and_folder_are_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.idx' cannot be read \(No such file"):
        read_idx(tmp_path / "none.idx")
    with pytest.raises(InputError, match=r"cannot be read \(Is a directory"):
        read_idx(tmp_path)
