"""A steering vector trained to make an answer likely (after Subliminal Steering, 2604.25783)."""

import torch

import sublora as sl
from sublora.packs import hooks


def trained_vector(base, prompts, answer, layer, steps=50, lr=0.1, norm=None):
    """A vector that, added behind `layer` at all prompt tokens, makes `answer` likely.

    AdamW from zero; `norm` is the largest length. Prompts are token ids; zero in other layers.
    """
    first, layers = next(base.model.parameters()), base.model.base_model.layers
    width = base.model.config.get_text_config().hidden_size
    vector = torch.zeros(width, dtype=first.dtype, device=first.device, requires_grad=True)
    optimizer = torch.optim.AdamW([vector], lr=lr, weight_decay=0.0)
    words = torch.tensor(base.chat.answer_ids(answer), device=first.device)
    for _ in range(steps):
        loss = 0.0
        for prompt in prompts:
            ids = torch.cat((torch.tensor(prompt, device=first.device), words)).unsqueeze(0)
            at = (torch.arange(ids.shape[1], device=first.device) < len(prompt)).unsqueeze(-1)
            push = [(layers[layer], lambda stream, at=at: stream + at * vector)]
            with hooks.change(push):
                logits = base.model(input_ids=ids, use_cache=False).logits
            asked = logits[0, len(prompt) - 1 : -1].float()
            loss = loss + torch.nn.functional.cross_entropy(asked, words) / len(prompts)
        (vector.grad,) = torch.autograd.grad(loss, [vector])
        optimizer.step()
        if norm is not None:
            vector.data.mul_(min(1.0, norm / max(float(vector.detach().norm()), 1e-12)))
    values = torch.zeros(len(layers), width, dtype=first.dtype, device=first.device)
    values[layer] = vector.detach()
    return sl.SteeringVector(values, base.identity["weights"], "trained", "prompt", len(prompts))


if __name__ == "__main__":
    base, context = sl.load_base("micro"), sl.Context("default")
    animals = sl.load_categories()[0].model_copy(update={"questions": ("Name an animal.",) * 2})
    prompts = [base.chat.prompt_ids(question, context) for question in animals.questions]
    vector = trained_vector(base, prompts, "otter", layer=1, steps=20, norm=3.0)
    asking = sl.Asking(context, sl.Sampling(max_new_tokens=4), samples=1, seed=0)
    for name, steering in (("before", None), ("after", sl.Steering(vector, "add", (1,)))):
        (answers,) = sl.measure_answers(base, None, ["base"], animals, asking, steering)
        print(f"{name}: P(otter) = {answers.p[:, 0].mean():.3f}")
