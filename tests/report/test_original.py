from decimal import Decimal

import numpy as np

from mnist_mlp.report.original import original_runs, setup
from mnist_mlp.run.metrics import COLUMNS
from mnist_mlp.settings import compose_config


def test_headlines_are_as_printed() -> None:
    one_a, one_b, two_a, two_b = original_runs()
    assert str(one_a.text.final_accuracy) == "97.86"
    assert (one_a.text.best_accuracy, one_a.text.best_epoch) == (Decimal("98.22"), 430)
    assert (one_a.record.val_loss, one_a.record.train_loss) == (Decimal("0.7117"), Decimal("0.0023"))
    assert str(one_b.text.final_accuracy) == "98.3"  # not 98.30
    assert (str(one_b.text.val_loss), str(one_b.record.train_loss)) == ("1.2", "0.0000")
    assert (one_a.text.test_accuracy, one_b.text.test_accuracy) == (Decimal("97.67"), Decimal("98.13"))
    assert (two_a.text.val_loss, two_a.text.train_loss) == (Decimal("0.18"), Decimal("0.07"))
    assert (str(two_a.record.best_accuracy), two_a.record.best_epoch) == ("97.80", 101)
    assert (two_b.text.final_accuracy, two_b.text.val_loss) == (Decimal("98.4"), Decimal("0.35"))
    assert two_b.record.test_accuracy == Decimal("98.70")
    assert two_b.text.best_accuracy is None


def test_every_run_has_its_five_hundred_epochs() -> None:
    assert [(run.experiment, run.network, run.figure) for run in original_runs()] == [
        (1, "A", 10),
        (1, "B", 12),
        (2, "A", 14),
        (2, "B", 16),
    ]
    for run in original_runs():
        assert set(run.epochs) < set(COLUMNS)
        assert run.epochs["epoch"].tolist() == list(range(1, 501))
        assert np.array_equal(run.epochs["val/recall"], run.epochs["val/accuracy"])
        assert np.allclose(run.epochs["val/error"] + run.epochs["val/accuracy"], 1)
        # The headline's figures are read from another table of the source.
        last = {column: values[-1] for column, values in run.epochs.items()}
        assert f"{last['val/loss']:.4f}" == str(run.record.val_loss)
        assert f"{last['train/loss']:.4f}" == str(run.record.train_loss)
        assert f"{100 * last['val/accuracy']:.2f}" == str(run.record.final_accuracy)
        accuracy = run.epochs["val/accuracy"]
        assert f"{100 * accuracy.max():.2f}" == str(run.record.best_accuracy)
        assert accuracy.argmax() + 1 == run.record.best_epoch


def test_the_times_add_up_to_what_the_records_say() -> None:
    total = sum(run.seconds for run in original_runs())
    assert total == 30_758
    assert round(total / 2000, 1) == 15.4


def test_setups_and_names_are_this_projects() -> None:
    assert [entry.what for entry in setup()][:2] == ["optimiser", "scheduler"]
    assert "never decayed" in setup()[1].dropout
    for run in original_runs():
        for experiment in (run.as_run, run.as_told):
            assert compose_config([f"experiment={experiment}", f"model={run.model}"]).model.hidden
