import atexit
import gc
import os
import signal
from pathlib import Path

import pytest

gc.disable()  # until tests are collected: what they import stays, and looking through it takes a fifth of the imports
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as for a job in the background, whose children inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
pytest_plugins = ["made_runs"]  # runs made by hand, for the tests of studies and reports
SHARED = Path(__file__).parents[1].parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The data folder beside the checkout; absent on some machines, never on CI."""
    if not SHARED.is_dir():
        message = f"{SHARED}: not there, so tests on real traces cannot run"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return SHARED


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEADSPAN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def pytest_collection_finish() -> None:
    """Leave what was imported out of every later collection: each run of the Trainer asks for a whole one."""
    gc.enable()
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)  # or nanobind reports what it finds alive when the process ends
