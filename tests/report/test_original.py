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


def test_every_run_has_twenty_consistent_epochs() -> None:
    assert [(run.experiment, run.network, run.figure) for run in original_runs()] == [
        (1, "A", 10),
        (1, "B", 12),
        (2, "A", 14),
        (2, "B", 16),
    ]
    for run in original_runs():
        assert set(run.points) < set(COLUMNS)
        assert run.points["epoch"].tolist() == original_runs()[0].points["epoch"].tolist()
        assert (len(run.points["epoch"]), run.points["epoch"][-1]) == (20, 500)
        assert np.array_equal(run.points["val/recall"], run.points["val/accuracy"])
        for column, values in run.points.items():
            assert np.array_equal(values, np.round(values, 4)), column  # four decimals, as in the source
            assert column == "epoch" or np.all((values >= 0) & (values < 1.2))
        for metric in ("precision", "f1"):
            assert np.all(np.abs(run.points[f"val/{metric}"] - run.points["val/accuracy"]) < 0.0012)
        # The last point is the headline's epoch, read from another table of the source.
        assert float(run.record.val_loss or 0) == run.points["val/loss"][-1]
        assert float(run.record.train_loss or 0) == run.points["train/loss"][-1]
        assert float(run.record.final_accuracy or 0) == round(100 * run.points["val/accuracy"][-1], 2)
        assert float(run.record.best_accuracy or 0) >= round(100 * max(run.points["val/accuracy"]), 2)


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
