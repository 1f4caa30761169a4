"""Pictures of digits are brought to the form that a network knows, whatever is around, under and beside the digit."""

import numpy as np
import pytest
from drawn_digits import (
    KINDS,
    REFUSED,
    fields_of,
    image_of,
    inked,
    mnist_image,
    on_paper,
    picture,
    read_right,
)

from mnist_mlp.digits import NoDigitError, field_of, mnist_form, otsu


def colours(pixels: np.ndarray) -> np.ndarray:
    return np.repeat(np.asarray(picture(pixels), dtype=np.float32)[:, :, None], 3, axis=2)


def test_the_packages_networks_read_every_kind() -> None:
    """Five of each kind, by two hands in turn: 4 of the five are right, and 99 % of all."""
    digits = ((0, 3, 4, 7, 8), (1, 2, 5, 6, 9))
    drawings = [(kind, d, (d + number) % 2) for number, kind in enumerate(KINDS) for d in digits[number % 2]]
    fields = fields_of(drawings)
    for network in ("network_a", "network_b"):
        right = read_right(fields, None, network)
        assert {kind: right[kind] for kind in KINDS if right[kind] < 4} == {}, network
        assert right.total() >= 0.99 * len(drawings), network


@pytest.mark.parametrize("kind", REFUSED)
def test_what_holds_no_digit_or_several_is_refused(kind: str) -> None:
    with pytest.raises(NoDigitError, match=r"^has (no digit on it|\d+ marks of a digit's size on it)"):
        field_of(colours(REFUSED[kind]()))


@pytest.mark.parametrize("pen", [2, 4, 8, 20])
def test_every_pen_gets_mnists_ink(pen: float) -> None:
    """MNIST's digits have a mean of 33 over their 784 pixels, a standard deviation of 10, and 255 or nearly that."""
    for digit in range(10):
        field = field_of(colours(on_paper(inked(digit, 0, pen))))
        assert field.max() > 240
        assert 12 < field.mean() < 70
        inside = np.argwhere(field > 60)
        assert np.ptp(inside, axis=0).max() + 1 in (18, 19, 20)


def test_marks_beside_a_digit_change_nothing() -> None:
    alone = field_of(colours(on_paper(inked(3, 0))))
    for kind in ("a speck of 3", "a speck of 6", "a dash beside", "a dark corner", "a line under it"):
        beside = field_of(np.asarray(image_of(kind, 3, 0).convert("RGB"), dtype=np.float32))
        assert np.abs(beside - alone).mean() < 1, kind


def test_mnist_in_a_margin_is_that_image() -> None:
    for digit in range(10):
        expected = mnist_image(digit, 0)
        for margin, background in ((0, False), (5, False), (9, False), (0, True)):
            page = mnist_image(digit, 0, margin)
            assert np.array_equal(field_of(colours(255 - page if background else page)), expected)


def test_a_bar_fills_the_box_and_is_centred() -> None:
    ink = np.ones((100, 50), dtype=np.float32)  # 100 high and 50 wide: becomes 20 by 10
    expected = np.zeros((28, 28), dtype=np.float32)
    expected[4:24, 10:20] = 255  # its centre of mass is the corner of four pixels, of which one is 14
    found = mnist_form(ink)
    assert np.array_equal(found, expected) or np.array_equal(found, np.roll(expected, -1, axis=1))


def test_the_threshold_is_the_best_of_all() -> None:
    values = np.concatenate([np.random.default_rng(0).normal(20, 5, 300), np.random.default_rng(1).normal(90, 9, 200)])
    within = [
        values[values <= at].var() * (values <= at).sum() + values[values > at].var() * (values > at).sum()
        for at in np.linspace(values.min(), values.max(), 129)[1:-1]
    ]
    threshold, share = otsu(values)
    assert threshold == pytest.approx(np.linspace(values.min(), values.max(), 129)[1 + int(np.argmin(within))], abs=3)
    assert share == pytest.approx(1 - min(within) / values.var() / len(values), abs=0.01)
