"""One small model for all ways of decoding."""

import pytest

from tests.generation.decoding_reference import Setup


@pytest.fixture(scope="package")
def setup():
    return Setup()


@pytest.fixture(scope="package")
def eos(setup):
    return setup.some_end()
