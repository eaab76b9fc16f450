"""Arrays drawn as characters: small cases by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from rich.console import Console

from memstore.cli.pictures import BLOCKS, MAX_HEIGHT, SHADES, Image, half_blocks, image_in, shaded, sparkline

RAMP = np.arange(8)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        (RAMP, BLOCKS),
        (RAMP[::-1].astype(np.float16), BLOCKS[::-1]),
        (RAMP.astype(">u8"), BLOCKS),
        (np.array([0.0, np.nan, 1.0, np.inf]), "▁ █ "),
        (np.array([3.5, 3.5]), "▅▅"),
        (np.array([0, 0], np.uint8), "▅▅"),
        (np.array([np.nan, -np.inf]), "  "),
        (np.array([]), ""),
        (np.array([True, False]), "█▁"),
        (np.array([0, 3 + 4j, -5j]), "▁██"),
        (np.array([-(2**63), 2**63 - 1]), "▁█"),
        (np.array([np.finfo(float).min, 0, np.finfo(float).max]), "▁▅█"),
        (np.array([0.0, 5e-324]), "▅▅"),
    ],
)
def test_a_sparkline_goes_from_the_lowest_to_the_highest(values: Any, line: str) -> None:
    assert sparkline(values) == line


def test_a_long_sparkline_averages_neighbours() -> None:
    values = np.repeat([0.0, np.nan, 2.0, 1.0], 25)
    values[10] = np.nan
    assert sparkline(values, 4) == "▁ █▅"
    assert len(sparkline(np.arange(1000.0), 60)) == 60


GRADIENT = np.arange(16).reshape(4, 4)


def test_shades_go_from_dark_to_bright() -> None:
    image = image_in(GRADIENT)
    assert image is not None
    assert (image.dark, image.bright, image.size) == (0.0, 15.0, "4 x 4")
    # i of 0 .. 15 has the shade i * 10 // 15, the brightest one its own.
    assert shaded(image, 80) == ["    ..::", "::--====", "++****##", "%%%%@@@@"]


@pytest.mark.parametrize(
    ("array", "top_left", "bottom_right"),
    [
        (np.diag([1, 0, 0, 1]).astype(bool), "@", "@"),
        (np.full((4, 4), 7.5), "+", "+"),
        (np.zeros((4, 4)), " ", " "),
        (np.full((4, 4), 0.5), "+", "+"),
        (np.full((4, 4), 51, np.uint8), ":", ":"),
        (np.full((4, 4), 255, np.uint8), "@", "@"),
        (np.full((4, 4), np.nan), "?", "?"),
        (np.where(GRADIENT == 0, np.nan, GRADIENT), "?", "@"),
        (GRADIENT * 1j, " ", "@"),
        (GRADIENT.astype(np.float16)[:, :, None], " ", "@"),
        (np.stack([GRADIENT] * 3), " ", "@"),
        (np.stack([GRADIENT] * 3, axis=2), " ", "@"),
        (np.stack([GRADIENT, GRADIENT, GRADIENT, 0 * GRADIENT], axis=2), " ", "@"),
    ],
)
def test_values_become_shades(array: Any, top_left: str, bottom_right: str) -> None:
    image = image_in(array)
    assert image is not None
    lines = shaded(image, 80)
    assert (lines[0] or " ")[0] == top_left
    assert lines[-1].ljust(8)[-1] == bottom_right


@pytest.mark.parametrize("shape", [(4, 4), (256, 256), (5, 6, 1), (5, 6, 3), (5, 6, 4), (1, 9, 9), (3, 9, 9), (784,)])
def test_shapes_of_images(shape: tuple[int, ...]) -> None:
    assert image_in(np.zeros(shape)) is not None


@pytest.mark.parametrize(
    "shape", [(), (0,), (4,), (9,), (100,), (65,), (10000,), (3, 4), (4, 257), (0, 4), (5, 5, 2), (2, 9, 9), (1,) * 4]
)
def test_shapes_of_something_else(shape: tuple[int, ...]) -> None:
    assert image_in(np.zeros(shape)) is None


def test_a_row_that_is_a_square_is_drawn_as_one() -> None:
    image = image_in(np.arange(64))
    assert image is not None
    assert np.array_equal(image.pixels[:, :, 0] * 63, np.arange(64).reshape(8, 8))


def test_a_large_image_is_scaled_down_by_means() -> None:
    image = image_in(np.kron([[0, 1], [1, 0]], np.ones((64, 128))))
    assert image is not None
    lines = shaded(image, 80)
    assert lines == [" " * 40 + "@" * 40] * 10 + ["@" * 40] * 10
    tall = image_in(np.ones((256, 4)))
    assert tall is not None
    assert len(shaded(tall, 80)) == MAX_HEIGHT // 2


def _colours(image: Image, width: int) -> list[str]:
    console = Console(width=width, force_terminal=True, color_system="truecolor", no_color=False)
    with console.capture() as captured:
        console.print(half_blocks(image, width))
    return captured.get().splitlines()


def test_colour_puts_two_pixels_into_a_character() -> None:
    pixels = np.zeros((33, 33, 3), np.uint8)
    pixels[0, 0], pixels[1, 0] = (255, 0, 128), (1, 2, 3)
    image = image_in(pixels)
    assert image is not None
    lines = _colours(image, 80)
    assert len(lines) == 17
    assert lines[0].startswith("\x1b[38;2;255;0;128;48;2;1;2;3m▀")
    assert "48;2" not in lines[-1], "nothing is below the last of an odd number of rows"
    assert all(line.count("▀") == 33 for line in lines)


def test_small_images_are_magnified_and_the_unknown_has_a_colour() -> None:
    image = image_in(np.where(GRADIENT == 0, np.nan, GRADIENT))
    assert image is not None
    lines = _colours(image, 80)
    assert len(lines) == 16
    assert lines[0].startswith("\x1b[38;2;255;0;255;48;2;255;0;255m▀")
    assert len(_colours(image, 10)) == 4, "8 x 8 pixels are what fits into 10 characters"


NUMBERS = st.sampled_from(["b1", "u1", "<i8", ">u8", "f2", "<f4", ">f8", "c8"])


@given(st.data())
def test_whatever_it_is_it_is_drawn_within_its_width(data: st.DataObject) -> None:
    shape = data.draw(st.one_of(arrays.array_shapes(max_dims=3, max_side=12, min_side=0), st.just((64,))))
    array = data.draw(arrays.arrays(data.draw(NUMBERS), shape))
    width = data.draw(st.integers(4, 40))
    image = image_in(array)
    if image is not None:
        known = image.pixels[np.isfinite(image.pixels)]
        assert ((known >= 0) & (known <= 1)).all()
        assert all(len(line) <= width and set(line) <= set(SHADES + "?") for line in shaded(image, width))
        assert all(len(line) <= width for line in half_blocks(image, width).plain.splitlines())
    if array.ndim == 1:
        line = sparkline(array, width)
        assert len(line) == min(array.size, width) and set(line) <= set(BLOCKS + " ")
