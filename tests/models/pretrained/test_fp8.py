"""Dequantisation against a float64 loop over the blocks, and against transformers' own."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hypothesis_numpy

from mmrl.errors import UserError
from mmrl.models.pretrained import fp8
from mmrl.models.pretrained.safetensors import SINGLE, open_safetensors

BFLOAT16 = ml_dtypes.bfloat16


def scale_shape(shape, block) -> tuple[int, ...]:
    rows, columns = (-(-length // size) for length, size in zip(shape[-2:], block))
    return (*shape[:-2], rows, columns)


def quantised(shape, block, seed=0):
    """(weight, scale): all finite float8 values, scales over many powers of two."""
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 127, shape, np.uint8) | (rng.integers(0, 2, shape, np.uint8) << 7)
    scale = np.exp(rng.normal(-5, 3, scale_shape(shape, block))).astype(np.float32)
    return bits.view(ml_dtypes.float8_e4m3fn), scale


def naive(weight, scale, block) -> np.ndarray:
    """Element by element; the product is exact in float64, then rounded to float32, to bfloat16."""
    values = np.empty(weight.shape, np.float64)
    for *stack, row, column in np.ndindex(weight.shape):
        factor = scale[(*stack, row // block[0], column // block[1])]
        place = (*stack, row, column)
        values[place] = np.float64(weight[place]) * np.float64(factor)
    return values.astype(np.float32).astype(BFLOAT16)


def save(directory, weight, scale, name="model.w.weight", **others):
    arrays = {name: weight, name + "_scale_inv": scale, **others}
    safetensors.numpy.save_file(arrays, directory / SINGLE)


@settings(deadline=None)
@given(data=st.data())
def test_any_index_equals_that_of_a_loop_over_the_blocks(tmp_path_factory, data):
    block = data.draw(st.tuples(st.integers(2, 4), st.integers(2, 4)))
    shape = tuple(data.draw(st.lists(st.integers(1, 9), min_size=2, max_size=3)))
    index = data.draw(hypothesis_numpy.basic_indices(shape, allow_ellipsis=True))
    weight, scale = quantised(shape, block)
    save(tmp_path_factory.getbasetemp(), weight, scale)
    tensors = open_safetensors(tmp_path_factory.getbasetemp(), weight_block_size=block)
    actual, expected = tensors["model.w.weight"][index], naive(weight, scale, block)[index]
    assert actual.dtype == BFLOAT16
    assert np.shape(actual) == np.shape(expected)
    assert np.asarray(actual).tobytes() == np.asarray(expected).tobytes()


def test_blocks_are_128_by_128_and_the_last_ones_may_be_ragged(tmp_path):
    weight, scale = quantised((130, 300), (128, 128))
    assert scale.shape == (2, 3)
    save(tmp_path, weight, scale)
    actual = open_safetensors(tmp_path)["model.w.weight"][...]
    assert actual.tobytes() == naive(weight, scale, (128, 128)).tobytes()


def test_a_scale_may_be_in_another_file_and_is_not_listed(tmp_path):
    weight, scale = quantised((4, 4), (128, 128))
    safetensors.numpy.save_file({"w": weight}, tmp_path / "a.safetensors")
    plain = np.ones((2, 2), np.float32)
    safetensors.numpy.save_file({"w_scale_inv": scale, "v": plain}, tmp_path / "b.safetensors")
    tensors = open_safetensors(tmp_path)
    assert set(tensors) == {"v", "w"}
    assert tensors["w"].dtype == BFLOAT16 and tensors["w"].shape == (4, 4)
    assert tensors["v"].dtype == np.float32
    assert np.array_equal(tensors["w"][...], naive(weight, scale, (128, 128)))


@pytest.mark.oracle
def test_values_equal_those_of_transformers(tmp_path):
    import torch
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize

    weight, scale = quantised((256, 384), (128, 128))
    save(tmp_path, weight, scale)
    theirs = Fp8Dequantize(None)._dequantize_one(
        torch.from_numpy(weight.view(np.uint8)).view(torch.float8_e4m3fn),
        torch.from_numpy(scale),
        torch.bfloat16,
    )
    actual = open_safetensors(tmp_path)["model.w.weight"][...]
    assert actual.tobytes() == theirs.view(torch.uint16).numpy().tobytes()


WEIGHT, SCALE = quantised((200, 300), (128, 128))


@pytest.mark.parametrize(
    "arrays, fragments",
    [
        ({"w": WEIGHT}, ["tensor w", "is float8_e4m3fn", "expected its scale w_scale_inv"]),
        ({"w_scale_inv": SCALE}, ["tensor w_scale_inv", "a weight that is not there"]),
        (
            {"w": WEIGHT, "w_scale_inv": SCALE.T.copy()},
            ["tensor w_scale_inv", "(2, 3)", "(200, 300)", "found float32 of shape (3, 2)"],
        ),
        (
            {"w": WEIGHT, "w_scale_inv": SCALE.astype(BFLOAT16)},
            ["tensor w_scale_inv", "expected float32 of shape (2, 3)", "found bfloat16"],
        ),
        (
            {"w": WEIGHT, "w_scale_inv": np.float32([1])},
            ["tensor w_scale_inv", "found float32 of shape (1,)"],
        ),
        (
            {"w": WEIGHT.astype(BFLOAT16), "w_scale_inv": SCALE},
            ["tensor w:", "expected float8_e4m3fn, found bfloat16"],
        ),
        (
            {"w": WEIGHT.astype(ml_dtypes.float8_e5m2), "w_scale_inv": SCALE},
            ["tensor w:", "expected a float8_e4m3fn matrix, found float8_e5m2"],
        ),
        ({"w": WEIGHT[0].copy(), "w_scale_inv": SCALE[0].copy()}, ["matrix", "shape (300,)"]),
    ],
)
def test_what_does_not_fit_together_is_one_error(tmp_path, arrays, fragments):
    safetensors.numpy.save_file(arrays, tmp_path / SINGLE)
    with pytest.raises(UserError) as raised:
        open_safetensors(tmp_path)
    assert [part for part in [SINGLE, *fragments] if part not in str(raised.value)] == []


def test_only_the_blocks_of_the_index_are_read(tmp_path):
    weight, scale = quantised((512, 512), (128, 128))
    save(tmp_path, weight, scale)
    tensors = open_safetensors(tmp_path)
    boxes = []

    def recording(tensor):
        def read(bounds):
            boxes.append(tuple((bound.start, bound.stop) for bound in bounds))
            return tensor[bounds]

        return read

    def wrapped(name, array):
        whole = type(tensors["model.w.weight"])
        return whole(name, tmp_path / SINGLE, array.shape, array.dtype, recording(array))

    parts = {name: wrapped(name, array) for name, array in [("w", weight), ("w_scale_inv", scale)]}
    part = fp8.dequantised(parts)["w"][130:256, 100:129]
    assert np.array_equal(part, naive(weight, scale, (128, 128))[130:256, 100:129])
    assert sorted(boxes) == [((1, 2), (0, 2)), ((130, 256), (100, 129))]


@pytest.mark.parametrize(
    "config, expected",
    [
        ({}, (128, 128)),
        ({"quantization_config": None}, (128, 128)),
        ({"quantization_config": {"quant_method": "fp8"}}, (128, 128)),
        ({"quantization_config": {"weight_block_size": [64, 32]}}, (64, 32)),
    ],
)
def test_a_config_may_set_the_size_of_a_block(config, expected):
    assert fp8.block_size(config, Path("config.json")) == expected


@pytest.mark.parametrize("size", [128, [128], [128, 0], [128, 1.5], "ab"])
def test_a_malformed_size_of_a_block_is_an_error_that_names_the_field(size):
    config = {"quantization_config": {"weight_block_size": size}}
    with pytest.raises(
        UserError, match="config.json: quantization_config.weight_block_size.*found"
    ):
        fp8.block_size(config, Path("config.json"))
