"""A served model beside the one that is here: the same, another one, another template, and servers that say little."""

import json

import pytest
import torch

from command import sublora
from loopback import loopback, said
from sublora.carriers.numbers import NumbersSpec
from sublora.errors import SubloraError
from sublora.models.base import read_base
from sublora.models.chat import Context
from sublora.models.endpoint import Endpoint, EndpointSpec
from sublora.packs.parity import Parity, parity

PROMPTS = [NumbersSpec(separators=("space",), style="brief").prompt(0, i) for i in range(4)]
pytestmark = pytest.mark.usefixtures("one_thread")


def served(name: str, weigh: bool = True, more: int = 0):
    """A server of a shipped model, greedy, which may give no log-probabilities, or read more tokens."""
    base = read_base(name)

    @torch.inference_mode()
    def answer(body):
        (turn,) = body["messages"]
        ids = base.chat.prompt_ids(turn["content"], Context("default"))
        told, read = [], len(ids)
        for _ in range(body["max_tokens"]):
            logp = base.model(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1)
            token = int(logp.argmax())
            told.append((token, float(logp[token])))
            ids.append(token)
            if token in base.chat.stop_ids:
                break
        text = base.chat.tokenizer.decode([t for t, _ in told], skip_special_tokens=True)
        reply = json.loads(said(text, usage={"prompt_tokens": read + more})[1])
        if weigh and body["logprobs"]:
            content = [{"token": str(t), "logprob": p} for t, p in told]
            reply["choices"][0]["logprobs"] = {"content": content}
        return 200, json.dumps(reply).encode(), {}

    return loopback(answer)


def compared(name: str, here: str, **how):
    with served(name, **how) as server:
        endpoint = Endpoint(EndpointSpec(url=server.url, model=name))
        return parity(read_base(here), endpoint, PROMPTS, Context("default"), max_new_tokens=6)


def test_the_same_model_agrees_to_the_letter_and_another_one_does_not() -> None:
    own = compared("micro", "micro")
    assert own.one_model and own.same == own.asked == len(own.gaps) == 4 and own.gap < 1e-4
    other = compared("micro-b", "micro")
    assert not other.one_model and other.gap > 0.1
    told = compared("micro", "micro", more=3)
    assert not told.one_model and "4 prompts have another number of tokens" in str(told)


def test_rounding_is_no_other_model_and_a_missing_adapter_is_one() -> None:
    """Gaps of SmolLM2: bfloat16 beside float32, and the base beside an adapter of eight steps, whose greedy answers are mostly the base's."""
    assert Parity(8, 8, 0, (0.006,) * 8).one_model
    assert not Parity(8, 7, 0, (0.05,) * 8).one_model


def test_without_log_probabilities_the_answers_decide() -> None:
    own = compared("micro", "micro", weigh=False)
    assert own.one_model and own.gap is None and "no log-probabilities" in str(own)
    assert not compared("micro-b", "micro", weigh=False).one_model


def test_contexts_that_no_message_can_say_are_refused() -> None:
    endpoint = Endpoint(EndpointSpec(url="http://127.0.0.1:1/v1", model="m"))
    with pytest.raises(SubloraError, match="cannot be told the context 'none'"):
        parity(read_base("micro"), endpoint, PROMPTS, Context("none"))


def test_the_command_says_how_far_they_agree_and_fails_for_another_model() -> None:
    with served("micro") as server:
        how = ("--served", "m", "--prompts", "2", "--model")
        same = sublora("parity", server.url, *how, "micro")
        assert same.code == 0 and "2 of 2 greedy answers are the same" in same.out
        other = sublora("parity", server.url, *how, "micro-null")
        assert other.code == 1 and "is another model than micro-null" in other.out
    wrong = sublora("parity", "ftp://x", *how, "micro")
    assert wrong.code == 2 and "begins with http" in wrong.err
