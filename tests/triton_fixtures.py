"""Fixtures of the tests that run kernels; each `conftest.py` beside such tests imports them.

A test that asks for `call` runs interpreted, and on a GPU where there is one.
"""

from collections.abc import Iterator

import interpreted
import pytest
from interpreted import Caller


@pytest.fixture(scope="session")
def interpreter() -> Iterator[Caller]:
    with interpreted.interpreter() as caller:
        yield caller


@pytest.fixture
def on_gpu() -> Iterator[Caller]:
    """For what is too large to interpret; the test is marked `gpu`."""
    with interpreted.gpu() as caller:
        yield caller


@pytest.fixture(params=["interpreter", pytest.param("on_gpu", marks=pytest.mark.gpu)])
def call(request: pytest.FixtureRequest) -> Caller:
    caller: Caller = request.getfixturevalue(request.param)
    return caller
