import pytest

from mnist_mlp.run.metrics import CLASSIFICATION, COLUMNS, METRIC


@pytest.mark.parametrize(
    ("column", "value", "text"),
    [("epoch", 3, "3"), ("val/loss", 0.12345, "0.1235"), ("val/f1", 0.9, "90.00"), ("lr", 1e-6, "1e-06")],
)
def test_a_value_is_shown_by_its_form(column: str, value: float, text: str) -> None:
    assert METRIC[column].text(value) == text


def test_titles_without_their_set() -> None:
    assert [METRIC[f"val/{name}"].short for name in CLASSIFICATION] == ["accuracy", "precision", "recall", "F1"]
    assert METRIC["lr"].short == "learning rate"
    assert tuple(METRIC) == COLUMNS
