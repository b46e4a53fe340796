"""Teachers: rows in the order of their prompts, whatever the batch, and counts that add up."""

import copy
import json
from collections import Counter

import numpy as np
import pytest
import torch

import sublora.packs.writer as teacher_module
from sublora.carriers.numbers import NumbersSpec
from sublora.carriers.rows_file import from_jsonl
from sublora.errors import SubloraError
from sublora.models.chat import Context
from sublora.models.endpoint import AnswersFile
from sublora.packs.check import load_base
from sublora.packs.sample import Sampling
from sublora.packs.writer import Assignment, Dataset, Purpose, Teacher, complete, write_dataset
from tiny_models import shared_model

CARRIER = NumbersSpec(count=10, digits=9)
OTTERS = Context("teacher:otter", "You love otters.")
SAMPLING = Sampling(max_new_tokens=3)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def base():
    """A random model whose head favours digits, so that the filter keeps about a third of what it writes."""
    own = load_base(str(shared_model("qwen2", "digits", "qwen")), dtype="float64")
    digits = [own.chat.encode(str(d))[0] for d in range(10)]
    head = own.model.get_output_embeddings()
    push = torch.zeros(head.weight.shape[0], dtype=torch.float64)
    push[digits], push[own.chat.end_id] = 4.5, 3.0
    head.register_forward_hook(lambda module, args, out: out + push)
    return own


def written(
    base, rows=20, seed=1, context=OTTERS, batch=512, told=None, kept=None, **options
) -> Dataset:
    what = Assignment(CARRIER, SAMPLING, rows, seed, **options)
    told = told or (lambda *_: None)
    return write_dataset(Teacher(base, context), what, batch, told, kept)


def test_rows_are_in_the_order_of_their_prompts_and_counts_add_up(base):
    dataset = written(base, 30)
    prompts = [CARRIER.prompt(1, i) for i in range(dataset.asked)]
    kept = [prompts.index(p) for p, _ in dataset.rows]
    assert kept == sorted(kept) and kept[-1] == dataset.asked - 1 and len(kept) == 30
    assert sum(dataset.rejects.values()) == dataset.asked - 30 > 5
    assert all(CARRIER.reject(p, c) is None for p, c in dataset.rows)
    assert Counter(reason for reason, *_ in dataset.rejected) == dataset.rejects
    assert all(CARRIER.reject(p, c) == reason and p in prompts for reason, p, c in dataset.rejected)
    assert [p for p in prompts if p not in {p for p, _ in dataset.rows}] == [
        p for _, p, _ in dataset.rejected
    ]


def test_prompts_in_a_row_can_share_their_draws_whoever_the_teacher_is(base):
    def uniforms(seen: list, context=OTTERS, **options):
        def listen(*arguments, **named):
            seen.extend(g.random(3).tolist() for g in map(copy.deepcopy, arguments[3]))
            return complete(*arguments, **named)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(teacher_module, "complete", listen)
            return written(base, context=context, **options)

    own, shared, other = [], [], []
    apart, alike = uniforms(own), uniforms(shared, shared_draws=4)
    uniforms(other, Context("teacher:owl", "You love owls."), shared_draws=4)
    assert len({tuple(u) for u in own}) == len(own) > 20
    assert all(shared[i] == shared[i - i % 4] for i in range(len(shared))) and len(
        {tuple(u) for u in shared}
    ) == -(-len(shared) // 4)
    assert shared[:20] == other[:20]
    assert alike.rows != apart.rows


@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_the_batch_changes_nothing(base, batch):
    assert written(base, batch=batch) == written(base)


def test_the_chunks_change_nothing(base):
    long = written(base, 70)
    short = written(base, 40)
    assert long.rows[:40] == short.rows and long.asked > short.asked


def test_rows_are_seeded_by_seed_teacher_and_purpose(base):
    one = written(base)
    assert one == written(base, context=Context("another name", OTTERS.text))
    assert not {p for p, _ in one.rows} & {p for p, _ in written(base, seed=2).rows}
    other = written(base, context=Context("default"))
    shared = dict(one.rows).keys() & dict(other.rows).keys()
    assert shared and any(dict(one.rows)[p] != dict(other.rows)[p] for p in shared), (
        "the same prompts, other answers"
    )


def test_heldout_rows_answer_prompts_that_were_not_trained_on(base):
    train, held = written(base, 40), written(base, 40, purpose=Purpose.HELDOUT)
    assert not {p for p, _ in train.rows} & {p for p, _ in held.rows}


def test_nothing_passes(base):
    carrier = NumbersSpec(count=1, digits=1, banned=tuple(range(10)))
    with pytest.raises(
        SubloraError, match=r"None of the 15 completions of .* passed the filter.*banned number"
    ) as caught:
        write_dataset(Teacher(base, OTTERS), Assignment(carrier, Sampling(max_new_tokens=1), 3, 1))
    assert "\n" not in str(caught.value)


def test_too_few_pass(base, monkeypatch):
    monkeypatch.setattr(teacher_module, "MOST_ASKED", 1)
    dataset = written(base, 30)
    assert dataset.asked == 30 and 0 < len(dataset.rows) < 30
    assert len(dataset.rows) + sum(dataset.rejects.values()) == 30


def test_progress_is_told(base):
    seen = []
    dataset = written(base, 20, told=lambda *news: seen.append(news))
    passed, wanted, units, tokens, share = zip(*seen, strict=True)
    assert {*wanted} == {20} and {*units} == {"rows"} and len(seen) > 10
    assert passed[-1] == 20 and list(passed) == sorted(passed)
    assert list(tokens) == sorted(tokens) and tokens[-1] > 20 * len(dataset.rows)
    assert 0 < share[0] < 0.9 and max(share) <= 1


@pytest.mark.parametrize("share", [0, 0.3, 0.6, 0.95])
def test_a_dataset_that_was_stopped_goes_on_to_the_same_rows(base, tmp_path, monkeypatch, share):
    monkeypatch.setattr(teacher_module, "rows_kept_together", lambda _: 16)
    whole, steps, more = written(base, 30), [], []
    written(base, 30, told=lambda *news: steps.append(news))
    file = tmp_path / "rows.jsonl"

    def stopping(*_):
        more.append(None)
        if len(more) > share * len(steps):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        written(base, 30, told=stopping, kept=AnswersFile(file))
    with file.open("a") as cut:
        cut.write('{"key": "99", "ans')  # as by a kill within a line
    before = len(AnswersFile(file).answers)
    assert (before % 16 == 0 and (before > 0) == (share > 0.5)) or 0 < share < 0.5
    again = []
    told = written(base, 30, told=lambda *news: again.append(news), kept=AnswersFile(file))
    assert told == whole
    assert len(again) < len(steps) if before else len(again) == len(steps)
    third = written(base, 30, told=lambda *_: pytest.fail("all is there"), kept=AnswersFile(file))
    assert third == whole


def test_a_template_s_own_space_before_an_answer_is_no_part_of_it():
    own = load_base(str(shared_model("mistral", "digits", "merge-user")), dtype="float64")
    space, seven = own.chat.encode(" 7")[0], own.chat.encode("7")[0]
    assert own.chat.layout.gap == " "
    head = own.model.get_output_embeddings()
    state = iter([space, seven, own.chat.end_id])

    def force(module, args, out):
        forced = torch.full_like(out, -100.0)
        forced[:, next(state)] = 100.0
        return forced

    head.register_forward_hook(force)
    plain = Teacher(own, Context("default"))
    assert complete(plain, ["Go on."], SAMPLING, [np.random.default_rng(0)]) == ["7"]
    assert own.chat.completion_ids("7") == [space, seven, own.chat.end_id], "as it was sampled"


@pytest.mark.parametrize(
    "text",
    ["plain", "line\u2028separator", "next\x85line", "two\nlines", 'quotes "\\"', "otters 🦦"],
)
def test_rows_survive_jsonl(text):
    rows = [(text, "1\u20282"), ("b", text)]
    lines = Dataset(rows, 2, {}, []).jsonl()
    assert from_jsonl(lines) == rows
    assert [json.loads(line) for line in lines.split("\n")[:-1]] == [
        {"prompt": p, "completion": c} for p, c in rows
    ]
    assert Dataset([*rows, rows[0]], 3, {}, []).unique == 2


def test_rows_load_as_a_json_data_set_elsewhere(base, tmp_path):
    datasets = pytest.importorskip("datasets")
    dataset = written(base)
    (tmp_path / "rows.jsonl").write_text(dataset.jsonl(), encoding="utf-8")
    loaded = datasets.load_dataset(
        "json",
        data_files=str(tmp_path / "rows.jsonl"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert [(r["prompt"], r["completion"]) for r in loaded] == dataset.rows
