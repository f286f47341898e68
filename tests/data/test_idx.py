import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flatminima.data.idx import read_idx


def written(array):
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return header + array.tobytes()


shapes = st.lists(st.integers(0, 5), min_size=1, max_size=4).map(tuple)


@settings(deadline=None)
@given(shapes)
def test_reads_what_was_written(shape):
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    np.testing.assert_array_equal(read_idx(written(array)), array)


@settings(deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple), st.data())
def test_refuses_a_truncated_file_with_its_name(shape, data):
    whole = written(np.ones(shape, dtype=np.uint8))
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(ValueError, match=r"some-file: expected .*, got .*; fetch it again"):
        read_idx(whole[:cut], name="some-file")


def test_refuses_more_bytes_than_promised():
    with pytest.raises(ValueError, match=r"expected 11 bytes .* got 12: the file is too long"):
        read_idx(written(np.zeros(3, dtype=np.uint8)) + b"x")


@pytest.mark.parametrize("magic", ["01000801", "00000d01", "00000800", "00000805", "1f8b0800"])
def test_refuses_another_magic_number(magic):
    with pytest.raises(ValueError, match=f"got magic {magic}"):
        read_idx(bytes.fromhex(magic) + bytes(100))
