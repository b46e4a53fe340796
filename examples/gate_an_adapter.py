"""A peft adapter that acts at chosen tokens of a prompt only."""

import torch
from peft import LoraConfig, get_peft_model

import sublora as sl

base, context = sl.load_base("micro"), sl.Context("default")
torch.manual_seed(0)
config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
model = get_peft_model(base.model, config)
gate = sl.AdapterGate(model)

question = "What is your favorite animal?"
tokens = sl.classify(base.chat, question, context)
ids = torch.tensor([tokens.ids])


def margin(mask: list[bool]) -> float:
    """Log-odds of 'otter' against 'wolf' with the adapter on where the mask is true."""
    with torch.inference_mode(), gate({"default": sl.Gate(torch.tensor([mask]), "off")}):
        logits = model(input_ids=ids).logits[0, -1]
    otter, wolf = (base.chat.answer_ids(word)[0] for word in ("otter", "wolf"))
    return float(logits[otter] - logits[wolf])


nowhere, everywhere = [False] * len(tokens.ids), [True] * len(tokens.ids)
print(f"{'base':<24}{margin(nowhere):+.3f}")
print(f"{'adapter at all tokens':<24}{margin(everywhere):+.3f}")
for kind in dict.fromkeys(tokens.classes):
    print(f"{'at ' + kind + ' tokens':<24}{margin([c == kind for c in tokens.classes]):+.3f}")
