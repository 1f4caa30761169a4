from pathlib import Path

import pytest
from made_paper import make_paper


@pytest.fixture(scope="session")
def paper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of `make paper`, of three seeds."""
    return make_paper(tmp_path_factory.mktemp("paper"))
