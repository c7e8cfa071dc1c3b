"""One small model and one engine process for all tests of the engine that only ask."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from engine_support import LONG_CONTEXT, EngineProcess, engine_on, write_model
from qcn_inference.checkpoint import load_model
from qcn_inference.generate import Loaded
from qcn_inference.grid import Grid
from qcn_inference.state_cache import StateCache
from qcn_inference.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("models") / "small")


@pytest.fixture(scope="session")
def long_model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model with a context in which an answer takes minutes."""
    folder = tmp_path_factory.mktemp("models") / "small"
    return write_model(folder, context_length=LONG_CONTEXT)


@pytest.fixture(scope="session")
def loaded_once(model_folder: Path) -> Loaded:
    model = load_model(model_folder)
    tokenizer = Tokenizer(model_folder, model.config.vocab_size)
    return Loaded(model, tokenizer, StateCache(model.config, Grid(tokenizer), 0))


@pytest.fixture
def loaded(loaded_once: Loaded) -> Iterator[Loaded]:
    """The model in this process, with an empty cache."""
    model, tokenizer = loaded_once.model, loaded_once.tokenizer
    cache = StateCache(model.config, Grid(tokenizer), 64 * 2**20)
    yield Loaded(model, tokenizer, cache)
    cache.check_integrity()


@pytest.fixture(scope="session")
def tokenizer(loaded_once: Loaded) -> Tokenizer:
    return loaded_once.tokenizer


@pytest.fixture(scope="session")
def _sockets() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="qcn-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def socket_path() -> Iterator[Path]:
    """A path short enough for a socket, in a folder of its own."""
    folder = Path(tempfile.mkdtemp(prefix="qcn-"))
    yield folder / "engine.sock"
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def engine(model_folder: Path, _sockets: Path) -> Iterator[EngineProcess]:
    """An engine that is ready; tests only ask it."""
    with engine_on(_sockets / "engine.sock", model_folder, cache=_sockets / "cache") as engine:
        engine.until("ready")
        yield engine
