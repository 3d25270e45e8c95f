"""Fixtures of the models room: tiny random models, loaded once."""

import pytest


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """family -> folder of the saved model."""
    import tiny

    root, made = tmp_path_factory.mktemp("tiny"), {}

    def get(family):
        if family not in made:
            made[family] = tiny.make(family, root / family)
        return made[family]

    return get


@pytest.fixture(scope="session")
def loaded(folder):
    """(family, pinned width or 0) -> model."""
    from steno.models import ModelSpec, hf

    made = {}

    def get(family, width=0):
        if (family, width) not in made:
            spec = ModelSpec(source=family, device="cpu", pinned=width > 0, width=width or 16)
            made[family, width] = hf.load(folder(family), spec)
        return made[family, width]

    return get
