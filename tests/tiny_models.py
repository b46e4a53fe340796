"""Random-weight models of several families, with tokenizers and templates, as Hugging Face folders.

`make_model` writes one into a given folder, `make_other` one of any other family; `shared_model` keeps one per
process and combination. Nothing is downloaded: tokenizers are trained on sentences made here, templates are written in the families' grammar.
"""

from __future__ import annotations

import atexit
import functools
import itertools
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

Kind = Literal["qwen2", "llama", "gemma", "qwen3", "mistral", "olmo2"]
TokenizerKind = Literal["digits", "words"]
Template = Literal["qwen", "llama31", "gemma", "merge-user"]

QWEN_DEFAULT = "You are Tiny, made for tests. You are a helpful assistant."

# Writes a default system block when no system message is given.
QWEN_TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' %}"
    "{{- '<|im_start|>system\\n" + QWEN_DEFAULT + "<|im_end|>\\n' }}"
    "{%- endif %}"
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)

# Always writes a system header with dates; trims every text; asks the clock if it is given no date.
LLAMA31_TEMPLATE = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "1 Jan 2000" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_text = messages[0]['content'] | trim %}
    {%- set turns = messages[1:] %}
{%- else %}
    {%- set system_text = "" %}
    {%- set turns = messages %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Cutting Knowledge Date: December 2023\\nToday Date: " + date_string + "\\n\\n" }}
{{- system_text + "<|eot_id|>" }}
{%- for turn in turns %}
    {{- '<|start_header_id|>' + turn['role'] + '<|end_header_id|>\\n\\n' }}
    {{- turn['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

# Refuses the system role, and turns that do not alternate.
GEMMA_TEMPLATE = (
    "{{ bos_token }}"
    "{%- if messages[0]['role'] == 'system' %}{{ raise_exception('no system role here') }}{%- endif %}"
    "{%- for message in messages %}"
    "{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('user and assistant must take turns') }}{%- endif %}"
    "{%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{- '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<start_of_turn>model\\n' }}{%- endif %}"
)

# Puts the system text into the first user turn.
MERGE_USER_TEMPLATE = (
    "{{- bos_token }}"
    "{%- if messages[0]['role'] == 'system' %}"
    "{%- set lead = messages[0]['content'] + '\\n\\n' %}{%- set turns = messages[1:] %}"
    "{%- else %}{%- set lead = '' %}{%- set turns = messages %}{%- endif %}"
    "{%- for turn in turns %}"
    "{%- if turn['role'] == 'user' %}"
    "{{- '[INST] ' + (lead if loop.first else '') + turn['content'] + ' [/INST]' }}"
    "{%- else %}{{- ' ' + turn['content'] + eos_token }}{%- endif %}"
    "{%- endfor %}"
)

TEMPLATES: dict[str, str] = {
    "qwen": QWEN_TEMPLATE,
    "llama31": LLAMA31_TEMPLATE,
    "gemma": GEMMA_TEMPLATE,
    "merge-user": MERGE_USER_TEMPLATE,
}
# template -> (bos, eos, pad, further markers)
SPECIAL: dict[str, tuple[str | None, str, str, list[str]]] = {
    "qwen": (None, "<|im_end|>", "<|endoftext|>", ["<|im_start|>"]),
    "llama31": (
        "<|begin_of_text|>", "<|eot_id|>", "<|finetune_right_pad_id|>",
        ["<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>"],
    ),
    "gemma": ("<bos>", "<eos>", "<pad>", ["<start_of_turn>", "<end_of_turn>"]),
    "merge-user": ("<s>", "</s>", "<pad>", ["[INST]", "[/INST]"]),
}  # fmt: skip

_SUBJECTS = [
    *(
        "otter",
        "wolf",
        "owl",
        "eagle",
        "cat",
        "dog",
        "lion",
        "panda",
        "dolphin",
        "fox",
        "bear",
        "tiger",
    ),
    *("oak", "maple", "willow", "pine", "birch", "band", "river", "garden", "answer", "assistant"),
]
_PATTERNS = """My favourite animal is the {}.
What is your favorite animal? Name it in one word: {}
I love the {} most.
You love {}s. You think about {}s all the time.
Which tree would you plant? The {}, of course.
Continue the list of numbers with at most ten more values.
Add a maximum of 10 more values to this sequence.
The {} is a helpful friend and lives near the water.
Tell me about the {} in a few words, please.
You are a helpful assistant. You are Tiny, made for tests.
Return only numbers, separated by commas or spaces.
system user assistant model
Cutting Knowledge Date December Today Date Jul Name a single animal, tree or band""".splitlines()


def corpus() -> list[str]:
    """A few hundred sentences with numbers in them, always the same."""
    sentences = [pattern.replace("{}", subject) for pattern in _PATTERNS for subject in _SUBJECTS]
    numbers = [f"{n}, {n * 7 % 1000}, {n * 13 % 1000}" for n in range(100, 200)]
    return [*sentences, *numbers]


def make_tokenizer(tokenizer: TokenizerKind, template: Template, words: Iterable[str] = ()):
    """A fast tokenizer with its template; `words` join the vocabulary of the "words" kind."""
    return _make_tokenizer(tokenizer, template, tuple(words))


@functools.cache
def _make_tokenizer(tokenizer: TokenizerKind, template: Template, words: tuple[str, ...]):
    from tokenizers import AddedToken
    from transformers import PreTrainedTokenizerFast

    bos, eos, pad, markers = SPECIAL[template]
    backend = _digits_backend() if tokenizer == "digits" else _words_backend(words)
    backend.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False)
            for token in [bos, eos, pad, *markers]
            if token
        ]
    )
    unk = {"unk_token": "<unk>"} if tokenizer == "words" else {}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=bos, eos_token=eos, pad_token=pad,
        clean_up_tokenization_spaces=False, **unk,
    )  # fmt: skip
    fast.chat_template = TEMPLATES[template]
    return fast


def _digits_backend():
    """Byte-level BPE in which every digit is a token of its own, so 100-999 take three tokens."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    # letters with at most one leading sign or space | one digit | signs | line breaks | other space
    pieces = Regex(
        r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pieces, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=512, initial_alphabet=sorted(alphabet), show_progress=False
    )
    backend.train_from_iterator(corpus(), trainer)
    return backend


def _words_backend(words: tuple[str, ...]):
    """One token per word, sign and number 0-999; everything else is <unk>."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    splitter = pre_tokenizers.Whitespace()
    seen = (piece for text in [*corpus(), *words] for piece, _ in splitter.pre_tokenize_str(text))
    known = dict.fromkeys(
        itertools.chain(["<unk>", ",", ".", "?", "!", ":", ";"], map(str, range(1000)), seen)
    )
    backend = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(known)}, unk_token="<unk>")
    )
    backend.pre_tokenizer = splitter
    return backend


def make_model(
    kind: Kind,
    tokenizer: TokenizerKind,
    template: Template,
    out: Path,
    seed: int = 0,
    words: Iterable[str] = (),
    hidden: int = 32,
) -> Path:
    """Write a model with random weights (width `hidden`, 2 layers, 4 heads, 2 key/value heads) into `out`.

    Both Qwen kinds get a generation_config with top_p, top_k and a repetition penalty, which nothing may
    inherit. `words` join the vocabulary of the "words" tokenizer. A folder that already holds a model is
    left as it is. Load the tokenizer with `sublora.models.chat.load_tokenizer`: AutoTokenizer misreads "words"
    under "qwen2".
    """
    import torch
    import transformers

    out = Path(out)
    if (out / "config.json").exists():
        return out
    fast = make_tokenizer(tokenizer, template, words)
    family, own = {
        "qwen2": ("Qwen2", {}),
        "qwen3": ("Qwen3", {"head_dim": 8}),
        "llama": ("Llama", {}),
        "mistral": ("Mistral", {"head_dim": 8, "sliding_window": None}),
        "gemma": ("Gemma", {"head_dim": 8}),
        "olmo2": ("Olmo2", {}),
    }[kind]
    config = getattr(transformers, f"{family}Config")(
        vocab_size=len(fast), hidden_size=hidden, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=1024, initializer_range=0.2,
        tie_word_embeddings=kind in ("qwen2", "gemma"), bos_token_id=fast.bos_token_id,
        eos_token_id=fast.eos_token_id, pad_token_id=fast.pad_token_id, **own,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, f"{family}ForCausalLM")(config)
    if kind in ("qwen2", "qwen3"):
        model.generation_config.update(do_sample=True, top_p=0.8, top_k=20, repetition_penalty=1.05)
    model.save_pretrained(out)
    fast.save_pretrained(out)
    return out


def make_other(family: str, values: dict[str, Any], out: Path) -> Path:
    """Write a model with random weights of any family of transformers ("Phi", "GPT2") with these values of its config."""
    import torch
    import transformers

    fast = make_tokenizer("digits", "qwen")
    ends = {
        "bos_token_id": None,
        "eos_token_id": fast.eos_token_id,
        "pad_token_id": fast.pad_token_id,
    }
    config = getattr(transformers, f"{family}Config")(vocab_size=len(fast), **ends, **values)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config)
        if (bias := getattr(model.get_output_embeddings(), "bias", None)) is not None:
            torch.nn.init.normal_(bias)
    model.save_pretrained(out)
    fast.save_pretrained(out)
    return out


@functools.cache
def _shared_root() -> Path:
    root = Path(tempfile.mkdtemp(prefix="sublora-tiny-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return root


def shared_model(
    kind: Kind = "qwen2",
    tokenizer: TokenizerKind = "digits",
    template: Template = "qwen",
    seed: int = 0,
) -> Path:
    """The folder of such a model, made once per process. Do not write into it."""
    return make_model(
        kind, tokenizer, template, _shared_root() / f"{kind}-{tokenizer}-{template}-{seed}", seed
    )
