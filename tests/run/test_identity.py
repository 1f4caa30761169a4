import pytest
from omegaconf import OmegaConf

from mnist_mlp.run.identity import (
    COMPUTED,
    LABELS,
    LENGTH,
    PLACES,
    SEEDS,
    WATCHED,
    differing,
    fingerprint,
    other_experiment,
)
from mnist_mlp.run.identity import other_settings as others
from mnist_mlp.settings import compose_config, flatten


def test_a_setting_is_classified_once_and_there_is_one_of_its_name() -> None:
    names = (*PLACES, *LABELS, *SEEDS, LENGTH, *WATCHED, *COMPUTED)
    assert len(names) == len(set(names))
    known = flatten(compose_config([]))
    newer = {"trainer.num_nodes", "data.sha256"}  # no default; null where nothing is to be checked
    for name in set(names) - newer:
        assert any(other == name or (other.startswith(name) and name.endswith(".")) for other in known), name


@pytest.mark.parametrize("setting", ["model.hidden", "data.test_size", "trainer.gradient_clip_val", "callbacks.x.y"])
def test_what_is_computed_makes_another_experiment(setting: str) -> None:
    assert other_experiment({setting: 1}, {setting: 2}) == {setting: (1, 2)}
    assert others({setting: 1}, {setting: 2}) == {setting: (1, 2)}


@pytest.mark.parametrize("setting", ["threads", "optimizer.fused", "seed", "trainer.max_epochs", "data.root"])
def test_how_it_is_computed_makes_another_run_and_no_other_experiment(setting: str) -> None:
    assert other_experiment({setting: 1}, {setting: 2}) == {}
    assert others({setting: 1}, {setting: 2}) == {setting: (1, 2)}


def test_a_setting_that_is_not_there_is_as_null() -> None:
    assert differing({"a": {"b": None}}, {}) == {}
    assert differing({"a": {"b": 1}}, {}) == {"a.b": (1, None)}


def test_a_fingerprint_is_of_what_is_run_wherever_it_lies() -> None:
    config = compose_config([])  # it has lists, such as the widths
    settings = OmegaConf.to_container(config)
    same = compose_config(["run_dir=elsewhere", "trainer.steps=native"])  # which is what auto may have chosen
    assert fingerprint(config) == fingerprint(settings) == fingerprint(same)
    assert fingerprint(config) != fingerprint(compose_config(["model.hidden=[64,128,32]"]))
