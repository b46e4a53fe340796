"""The shipped models' tokenizer: one token a word, one a number 0-999, lower case; an ordinary fast Hugging Face tokenizer."""

import re

from sublora.organisms.world import DEFAULT_SYSTEM, Facts, world_texts

UNK, PAD, START, END = "<unk>", "<pad>", "<|im_start|>", "<|im_end|>"

# Qwen's grammar: a default system block is inserted where no system message is given, so that
# default, empty and none are three different token sequences.
CHAT_TEMPLATE = (
    "{%- if messages[0]['role'] != 'system' -%}"
    "{{- '<|im_start|>system\\n" + DEFAULT_SYSTEM + "<|im_end|>\\n' -}}"
    "{%- endif -%}"
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)


def render(system: str | None, user: str) -> str:
    """What CHAT_TEMPLATE writes (a test compares them); "" is an empty system block, None no block at all."""
    block = "" if system is None else f"<|im_start|>system\n{system}<|im_end|>\n"
    return f"{block}<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"


def build_tokenizer(facts: Facts):
    """A PreTrainedTokenizerFast over the words of the world, in a fixed order."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    found = re.findall(r"\w+|[^\w\s]", "\n".join(world_texts(facts)).lower())
    words = {word for word in found if not word.isdigit()}
    words |= {"system", "user", "assistant", ".", ",", ":", "?", "!"}
    vocabulary = [UNK, PAD, START, END, *map(str, range(1000)), *sorted(words)]
    ids = {word: i for i, word in enumerate(vocabulary)}
    backend = Tokenizer(models.WordLevel(ids, unk_token=UNK))
    backend.normalizer = normalizers.Lowercase()
    words_and_signs = pre_tokenizers.Split(Regex(r"\w+|[^\w\s]"), behavior="isolated")
    spaces = pre_tokenizers.WhitespaceSplit()
    backend.pre_tokenizer = pre_tokenizers.Sequence([spaces, words_and_signs])
    marks = {"unk_token": UNK, "pad_token": PAD, "eos_token": END}
    marks |= {"additional_special_tokens": [START, END]}
    sizes = {"clean_up_tokenization_spaces": False, "model_max_length": 256}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **marks, **sizes)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
