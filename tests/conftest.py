import os
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# a busy machine is slow to draw and to run an example, which says nothing about a test
settings.register_profile("busy", suppress_health_check=[HealthCheck.too_slow], deadline=None)
settings.load_profile("busy")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# as many workers as cores: threads within each would only wait for one another
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
# a shell that runs the tests in the background makes them deaf to Ctrl-C, and every command that a test starts and interrupts too
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def own_store(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or writes the user's store."""
    home = tmp_path_factory.mktemp("store")
    monkeypatch.setenv("SUBLORA_HOME", str(home))
    return home


@pytest.fixture(scope="module")
def one_thread():
    """Threads within small products would only wait for one another."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
