import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.classification import MulticlassCalibrationError

from mnist_mlp.drawing.shapes import BLUE
from mnist_mlp.tensorboard import pictures


def guesses(samples: int, sharpness: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and probabilities that are often right."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (samples,), generator=generator)
    logits = torch.randn(samples, 10, generator=generator)
    logits[torch.arange(samples), labels] += 1.5
    return labels.numpy(), (sharpness * logits).softmax(dim=1).numpy()


def rgb(color: str) -> tuple[int, ...]:
    return tuple(int(color[place : place + 2], 16) for place in (1, 3, 5))


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 3.0])
def test_the_calibration_error_is_that_of_torchmetrics(sharpness: float) -> None:
    labels, probabilities = guesses(5000, sharpness)
    oracle = MulticlassCalibrationError(10, n_bins=pictures.BINS, norm="l1")
    expected = oracle(torch.from_numpy(probabilities), torch.from_numpy(labels)).item()
    samples, accuracy, confidence, error = pictures.calibration(labels, probabilities)
    assert error == pytest.approx(expected, abs=1e-5)
    assert error > 0.01
    assert samples.sum() == 5000
    assert (samples * accuracy).sum() == pytest.approx((probabilities.argmax(axis=1) == labels).sum())
    assert all(number / 15 < mean <= (number + 1) / 15 for number, mean in enumerate(confidence) if samples[number])


def test_the_calibration_error_by_hand() -> None:
    # Two samples surely right, one of them wrongly; one at 0.6 that is right: (2 * |1/2 - 1| + |1 - 0.6|) / 3
    probabilities = np.array([[1.0, 0.0], [1.0, 0.0], [0.4, 0.6]])
    assert pictures.calibration(np.array([0, 1, 1]), probabilities)[3] == pytest.approx(1.4 / 3)


def test_the_wrongest_come_in_order() -> None:
    labels, probabilities = guesses(2000)
    mistakes = [
        (-float(row.max()), index)
        for index, (row, label) in enumerate(zip(probabilities, labels, strict=True))
        if list(row).index(row.max()) != label
    ]
    assert len(mistakes) > 25
    assert pictures.wrongest(labels, probabilities) == [index for _, index in sorted(mistakes)[:25]]


def test_the_confusion_matrix_is_blue_where_right_and_reddest_where_most_is_wrong() -> None:
    counts = np.diag([1000] * 10)
    counts[3, 3], counts[3, 5], counts[7, 1] = 900, 100, 3
    picture = pictures.confusion_matrix(counts, "title")
    cell = (pictures.WIDTH - 74 - pictures.MARGIN - 78) / 10

    def corner(row: int, column: int) -> tuple[int, ...]:
        color = picture.getpixel((round(74 + cell * column) + 4, round(128 + cell * row) + 4))
        assert isinstance(color, tuple)
        return color

    assert corner(0, 0) == rgb(BLUE)
    red, slightly, none = corner(3, 5), corner(7, 1), corner(1, 7)
    assert red[0] > 2 * red[1]
    assert none[1] > slightly[1] > red[1]


def test_the_gap_does_not_hide_the_accuracy_of_a_bin_that_is_under_confident() -> None:
    probabilities = np.full((10, 10), 0.3 / 9)
    probabilities[:, 0] = 0.7  # in the bin from 2/3 to 11/15; 9 of 10 are right
    picture = pictures.reliability_diagram(np.array([0] * 9 + [1]), probabilities, "t")
    side = pictures.WIDTH - 92 - 40
    left, height = 92 + side * 10 / 15, side * 0.78
    colors = [picture.getpixel((round(left + 4), round(128 + height * (1 - share)))) for share in (0.95, 0.85, 0.5)]
    assert colors[0] == (255, 255, 255)
    assert colors[1] == colors[2] == rgb("#5b86c4")
    assert picture.getpixel((round(left + side / 30), round(128 + height * 0.2))) == rgb(
        "#f0b3ae"
    )  # 0.8, in the middle


def drawn() -> dict[str, Image.Image]:
    labels, probabilities = guesses(300)
    images = np.random.default_rng(0).normal(size=(300, 28, 28)).astype(np.float32)
    counts = np.random.default_rng(0).integers(0, 20_000, size=(10, 10))
    certain = np.eye(10)[labels]
    return {
        "confusion": pictures.confusion_matrix(counts, "t"),
        "three classes": pictures.confusion_matrix(counts[:3, :3], "t"),
        "wrong": pictures.most_confidently_wrong(
            images[pictures.wrongest(labels, probabilities)], labels, probabilities, "t"
        ),
        "none wrong": pictures.most_confidently_wrong(images[:0], labels, certain, "t"),
        "reliability": pictures.reliability_diagram(labels, probabilities, "t"),
        "certain": pictures.reliability_diagram(labels, certain, "t"),
        "weights": pictures.first_layer_weights(images[:70].reshape(70, 784), "t"),
        "few weights": pictures.first_layer_weights(np.zeros((3, 784), np.float32), "t"),
        "images": pictures.training_images(images[:40], "t"),
    }


def test_every_picture_is_of_a_size_to_be_read_and_survives_its_encoding() -> None:
    for name, picture in drawn().items():
        assert picture.width == pictures.WIDTH, name
        assert 200 < picture.height < 900, name
        content = pictures.encoded(picture)
        assert len(content) < 150_000, name
        read = Image.open(io.BytesIO(content)).convert("RGB")
        difference = np.abs(np.asarray(read, np.int16) - np.asarray(picture.convert("RGB"), np.int16))
        assert read.getpixel((0, 0)) == (255, 255, 255)
        assert difference.mean() < 8, name


def test_weights_are_red_above_zero_and_blue_below() -> None:
    weights = np.zeros((1, 784), np.float32)
    weights[0, :392], weights[0, 392:] = 0.5, -0.5
    picture = pictures.first_layer_weights(weights, "t")
    above, below = (picture.getpixel((pictures.WIDTH // 2, y)) for y in (110, 170))
    assert isinstance(above, tuple)
    assert isinstance(below, tuple)
    assert above[0] > 2 * above[2]
    assert below[2] > 2 * below[0]


def test_only_certainty_is_a_hundred_percent() -> None:
    assert f"{pictures._floor(0.99999):.1%}" == "99.9%"
    assert f"{pictures._floor(1.0):.1%}" == "100.0%"
