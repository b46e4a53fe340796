"""A test for each line of the table in SECURITY.md; the tests of each part have more."""

import html
import http.client
import json
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from command import sublora
from loopback import loopback, said
from report_fixture import make_page, write_run
from sublora.audit.adapter import load_audited
from sublora.audit.data_rows import check_rows
from sublora.errors import SubloraError
from sublora.experiments.written import read_file
from sublora.models.endpoint import LONGEST_ANSWER, Endpoint, EndpointSpec, Question
from sublora.packs.check import load_base
from sublora.report.page import build_report
from sublora.runner.live import Live
from sublora.store import Store
from sublora.store.yaml_file import MOST_VALUES, parse
from sublora.traits.trait import load_category

SECRET = "sk-planted-7f3a90c1e5"
SCRIPT = "<script>alert(1)</script>"


def test_the_table_names_what_is_tested_here() -> None:
    table = re.findall(
        r"^\| ([a-zA-Z ]+) \|", (Path(__file__).parents[1] / "SECURITY.md").read_text(), re.M
    )
    tested = {name.split("__")[0].removeprefix("test_") for name in globals() if "__" in name}
    assert {line.replace(" ", "_").lower() for line in table[1:]} == tested - {""}


def adapter(folder: Path, **settings: object) -> Path:
    folder.mkdir()
    plain = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(plain | settings))
    return folder


def test_adapter__runs_no_code_and_takes_no_memory(tmp_path: Path) -> None:
    base, ran = load_base("micro"), tmp_path / "ran"

    class Trap:
        def __reduce__(self) -> tuple:
            return Path.touch, (ran,)

    pickled, code, huge = (adapter(tmp_path / n) for n in ("pickled", "code", "huge"))
    torch.save({"x": Trap()}, pickled / "adapter_model.bin")
    (code / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "auto_map": {"AutoModel": "own.Own"}})
    )
    (code / "own.py").write_text(f"open({str(ran)!r}, 'w')")
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    header = json.dumps({name: {"dtype": "F32", "shape": [4, 2**60], "data_offsets": [0, 2**64]}})
    raw = len(header).to_bytes(8, "little") + header.encode()
    (huge / "adapter_model.safetensors").write_bytes(raw)
    save_file({name: torch.full((4, 64), float("nan"))}, code / "adapter_model.safetensors")
    for folder in (pickled, code, huge):
        with pytest.raises(SubloraError):
            load_audited(base, folder, any_base=True)
    assert not ran.exists()


def test_dataset__that_breaks_a_reader_is_one_sentence(tmp_path: Path) -> None:
    lines = ["[" * 100_000, '{"prompt": ' + "9" * 10_000 + "}", "\x00", '{"prompt": "\\ud800"}']
    for number, line in enumerate(lines):
        file = tmp_path / f"{number}.jsonl"
        file.write_text(f"{line}\n" * 5)
        with pytest.raises(SubloraError, match=file.name):
            check_rows(file, skip_broken=False)


def aliases(levels: int) -> str:
    """Few lines that stand for 9 ** levels values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text",
    [
        aliases(30),
        aliases(30).replace("[x", "{k: [x", 1).replace("x]", "x]}", 1),
        "a: &a [*a]",
        "a: &a {<<: *a}",
        "a: !!python/object/apply:os.system [true]",
        "a: " + "[" * 600,
        "name: ../elsewhere\nextends: rank-lr",
        "name: rank-lr\nextends: ../../etc/passwd",
    ],
)
def test_recipe__builds_nothing_fills_nothing_and_stays_in_its_folder(
    text: str, tmp_path: Path
) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(text)
    answer = sublora("plan", str(file))
    assert answer.code == 2 and answer.err.startswith("Error: ") and "Traceback" not in answer.err
    with pytest.raises(SubloraError):
        load_category(file)


@given(st.recursive(st.integers(), lambda inner: st.lists(inner, max_size=4), max_leaves=20))
def test_recipe__is_read_as_it_is_written(value: object) -> None:
    assert parse(f"a: {json.dumps(value)}")[1] == {"a": value}
    assert MOST_VALUES >= 100_000, "a plan of 100,000 students may be written out"


def test_recipe__stands_for_so_many_values_and_no_more(monkeypatch) -> None:
    monkeypatch.setattr("sublora.store.yaml_file.MOST_VALUES", 6)
    assert parse("[&a [1, 2], 3, 4]")[1] == [[1, 2], 3, 4]
    for text in ("[&a [1, 2], 3, 4, 5]", "[&a [1, 2], *a]"):
        with pytest.raises(yaml.YAMLError, match="more than 6 values"):
            parse(text)


def test_recipe__may_repeat_itself_by_aliases(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("a: &a {b: 1}\nc: *a\nd: {<<: *a, e: 2}")
    values = {"a": {"b": 1}, "c": {"b": 1}, "d": {"b": 1, "e": 2}}
    assert read_file(tmp_path / "own.yaml").values == values


@pytest.mark.parametrize(
    "raw",
    [
        b"\xff\xfe\x00",
        b"rank,lr,seeds,rate,n,base\n" + b"9" * 200_000 + b",1e-4,3,0.5,100,0.01\n",
        b'rank,lr,seeds,rate,n,base\n=HYPERLINK("http://x"),1e-4,3,0.5,100,0.01\n',
        b"rank,lr,seeds,rate,n,base\n" + SCRIPT.encode() + b",1e-4,3,0.5,100,0.01\n",
    ],
)
def test_csv__is_numbers_or_one_sentence(raw: bytes, tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    file.write_bytes(raw)
    answer = sublora("verdict", str(file))
    assert answer.code == 2 and answer.err.startswith("Error: ") and len(answer.err) < 1000


def test_page__shows_every_text_and_runs_none(tmp_path: Path) -> None:
    page = make_page(((SCRIPT, "animals"),), model=SCRIPT, ranks=(1, 8), rates=(1e-3, 1e-2))
    evil = {"warnings": [SCRIPT], "recipe": {"note": SCRIPT, "title": "</title>" + SCRIPT}}
    write_run(tmp_path, page.model_copy(update={"manifest": page.manifest | evil}))
    text = build_report(tmp_path).read_text("utf-8")
    assert text.count("<script") == 1 and html.escape(SCRIPT, quote=False) in text
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', text)
    assert "default-src 'none'" in policy and "'sha256-" in policy and "connect-src" not in policy
    loads = r"""<(?:script|link|img|iframe)[^>]*(?:src|href)=["'](?!data:)|@import|url\((?!#)"""
    assert not re.search(loads, text)


@pytest.mark.parametrize(
    "reply",
    [
        (200, b"[" * LONGEST_ANSWER, {}),
        (200, b" " * (LONGEST_ANSWER + 2), {}),
        said({"not": "text"}),
        (200, b'{"choices": [{"message": {"content": ["x"]}}]}', {}),
        (200, b"\xff\x00", {}),
        (302, b"", {"Location": "http://127.0.0.1:9/stolen"}),
    ],
)
def test_endpoint_answers__that_are_none_are_refused(reply: tuple, monkeypatch) -> None:
    monkeypatch.setenv("OWN_KEY", SECRET)
    with loopback(lambda body: reply) as server:
        spec = EndpointSpec(url=server.url, model="m", tries=2, key_env="OWN_KEY")
        with pytest.raises(SubloraError) as caught:
            Endpoint(spec, sleep=lambda _: None).ask(Question((("user", "hello"),), 4))
    assert len(str(caught.value)) < 400 and SECRET not in str(caught.value)
    assert "stolen" not in str(caught.value)


def test_live_page__answers_its_own_name_and_token_and_leaves_the_folder_alone(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    (folder / "figures").mkdir(parents=True)
    run = {"sentence": SCRIPT, "recipe": {"title": SCRIPT}, "progress": {}}
    (folder / "run.json").write_text(json.dumps(run))
    (tmp_path / "secret.svg").write_text(SECRET)
    (folder / "figures" / "out.svg").symlink_to("nowhere")

    def get(path: str, host: str | None = None) -> tuple[int, str]:
        at = urlsplit(live.url)
        connection = http.client.HTTPConnection(at.hostname, at.port, timeout=20)
        connection.request("GET", path, headers={"Host": host} if host else {})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()

    with Live(folder, list) as live:
        own = urlsplit(live.url).path
        status, page = get(own)
        assert status == 200 and SCRIPT not in page and "default-src 'none'" in page
        for path in ("/", "/events", own[:-3] + "/", own + "run.json"):
            assert get(path)[0] == 404
        for path in (
            "../run.json",
            "../../secret.svg",
            "%2e%2e/%2e%2e/secret.svg",
            "out.svg",
            "/etc/passwd",
        ):
            assert get(f"{own}figures/{path}")[0] == 404
        assert get(own, host="rebound.example")[0] == 404


def test_own_keys__are_in_no_file_that_a_run_leaves(tmp_path: Path, monkeypatch) -> None:
    """The key of an endpoint, and keys that lie in the environment for others."""
    for name in ("OWN_KEY", "HF_TOKEN", "OPENAI_API_KEY", "WANDB_API_KEY"):
        monkeypatch.setenv(name, SECRET)
    numbers = {"usage": {"prompt_tokens": 9, "completion_tokens": 9}}
    small = [
        *("data.rows=8", "data.heldout_rows=4", "data.seeds=[1]", "train.seeds=[1]"),
        *("measure.samples=1", "train.lora.ranks=[2]"),
    ]
    monkeypatch.chdir(tmp_path)
    with loopback(lambda body: said("101, 202, 303", **numbers)) as server:
        teacher = f"data.teacher.endpoint={{url: '{server.url}', model: big, key_env: OWN_KEY}}"
        sets = [word for setting in (*small, teacher) for word in ("--set", setting)]
        done = sublora("run", "rank", *sets)
        sent = {headers.get("Authorization") for headers, _ in server.requests}
    assert done.code == 0, done.err
    assert sent == {f"Bearer {SECRET}"}, "it was used"
    env = sublora("env")
    files = [p for at in (tmp_path, Store().root) for p in at.rglob("*") if p.is_file()]
    assert len(files) > 20 and not [p for p in files if SECRET.encode() in p.read_bytes()]
    assert SECRET not in done.out + done.err + env.out + env.err
