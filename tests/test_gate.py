"""Gates on single tokens: peft and packs agree, a cache changes nothing, all-off is the base and all-on the adapter."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model

from pack_reference import VOCABULARY, base_model, merged, random_stack, sample_answers
from sublora.errors import SubloraError
from sublora.models.token_classes import stack_masks
from sublora.packs.condition import Condition, layer_and_group
from sublora.packs.gate import AdapterGate, Gate, PackGate, pack_gate
from sublora.packs.packed_model import PackedModel
from sublora.packs.prefill import prefill
from sublora.packs.sample import Sampling
from sublora.packs.score import score_sequences
from sublora.packs.spec import StudentSpec
from sublora.packs.student_files import save_student

KINDS = ("qwen2", "llama", "gemma")
RNG = np.random.default_rng(7)
PROMPTS = [[3, 4, 5, *RNG.integers(10, VOCABULARY, size=n).tolist()] for n in (4, 7, 4, 4, 1)]
MASKS = [[float(v) for v in RNG.integers(0, 2, size=len(p))] for p in PROMPTS]
SPECS = [StudentSpec(rank=2, seed=1), StudentSpec(rank=8, seed=2), StudentSpec(rank=2, seed=3)]


pytestmark = pytest.mark.usefixtures("one_thread")


def peft_model(kind, seeds=(1,), **options) -> PeftModel:
    """A peft model with one adapter a seed, "default" and then by number, none of them zero."""
    names = ["default", *(str(s) for s in seeds[1:])]
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        lora_alpha=8,
        target_modules="all-linear",
        lora_dropout=0.0,
        **options,
    )
    model = get_peft_model(base_model(kind), config)
    for name in names[1:]:
        model.add_adapter(name, config)
    random = torch.Generator().manual_seed(sum(seeds))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = 0.3 * torch.randn(
                parameter.shape, generator=random, dtype=parameter.dtype
            )
    model.base_model.set_adapter(names)
    return model.eval()


@torch.no_grad()
def by_hand(model, gates: dict[str, tuple], ids, selected=lambda adapter, name: True):
    """Logits with W x + m s B A x written out: every LoRA layer replaced by a plain function; no cache, no hooks.

    `gates[adapter]` is its mask (B, T)."""
    model = copy.deepcopy(model)
    for name, layer in list(model.named_modules()):
        if not hasattr(layer, "lora_A") or not len(layer.lora_A):
            continue

        def forward(x, layer=layer, name=name):
            out = layer.get_base_layer()(x)
            for adapter, mask in gates.items():
                a, b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
                part = layer.scaling[adapter] * (x @ a.T @ b.T) * mask[..., None].to(x)
                out = out + (part if selected(adapter, name) else 0 * part)
            return out

        layer.forward = forward
    return model(input_ids=ids).logits


def grid(rows):
    return torch.tensor(rows)


@pytest.mark.parametrize("kind", KINDS)
def test_a_gated_forward_is_w_plus_mask_times_the_adapter(kind):
    model = peft_model(kind)
    ids = torch.tensor([PROMPTS[0], PROMPTS[2]])
    mask = grid([MASKS[0], MASKS[2]])
    with torch.no_grad(), AdapterGate(model)({"default": Gate(mask, "off")}):
        got = model(input_ids=ids).logits
    assert torch.allclose(got, by_hand(model, {"default": mask}, ids), atol=1e-9)
    with torch.no_grad():
        assert not torch.allclose(got, model(input_ids=ids).logits, atol=1e-3)


@settings(deadline=None, max_examples=25)
@given(st.data())
def test_several_adapters_with_masks_layers_and_modules_of_their_own(data):
    model = _two_adapters()
    ids = torch.tensor([PROMPTS[0], PROMPTS[2]])
    drawn, masks = {}, {}
    for adapter in ("default", "2"):
        values = st.sampled_from([0.0, 1.0, 0.25])
        masks[adapter] = grid([[data.draw(values) for _ in range(ids.shape[1])] for _ in ids])
        layers = data.draw(st.sampled_from([None, (0, 0), (1, 1), (0, 1)]))
        modules = data.draw(st.sampled_from(["all", "attention", "feed-forward"]))
        drawn[adapter] = Gate(masks[adapter], "on", layers=layers, modules=modules)
    with torch.no_grad(), AdapterGate(model)(drawn):
        got = model(input_ids=ids).logits

    def selected(adapter, name):
        gate, (layer, group) = drawn[adapter], layer_and_group(name)
        return (
            gate.layers is None or gate.layers[0] <= layer <= gate.layers[1]
        ) and gate.modules in ("all", group)

    assert torch.allclose(got, by_hand(model, masks, ids, selected), atol=1e-9)


_SHARED = {}


def _two_adapters():
    if not _SHARED:
        _SHARED["two"] = peft_model("qwen2", (1, 2))
    return _SHARED["two"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", ["on", "off", "mask"])
def test_gated_generation_with_cache_equals_recomputation_without_token_for_token(kind, policy):
    """Left-padded prompts in one batch with a cache, two samples each; every prefix read anew without cache or padding."""
    model, new = peft_model(kind), 6
    width = max(map(len, PROMPTS))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in PROMPTS])
    attention = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in PROMPTS])
    answer = (
        grid(RNG.integers(0, 2, size=(len(PROMPTS), new)).tolist()) if policy == "mask" else None
    )
    gate = AdapterGate(model)
    gated = Gate(stack_masks(MASKS, "left"), policy, answer)
    with torch.no_grad(), gate({"default": gated}):
        out = model.generate(
            input_ids=ids, attention_mask=attention, do_sample=True, temperature=2.0, top_k=0, top_p=1.0,
            repetition_penalty=1.0, max_new_tokens=new, min_new_tokens=new, num_return_sequences=2,
        )  # fmt: skip
        seen = torch.cat([attention.repeat_interleave(2, 0), torch.ones(len(out), new)], 1).long()
        places = (seen.cumsum(1) - 1).clamp(min=0)
        cached = model(input_ids=out, attention_mask=seen, position_ids=places).logits
    differs = False
    for row, tokens in enumerate(out.tolist()):
        prompt, mask = PROMPTS[row // 2], MASKS[row // 2]
        written = tokens[width:]
        rest = (
            answer[row // 2].tolist()
            if answer is not None
            else [1.0 if policy == "on" else 0.0] * new
        )
        whole = by_hand(model, {"default": grid([mask + rest])}, torch.tensor([prompt + written]))[
            0
        ]
        assert torch.allclose(cached[row, width - len(prompt) :], whole, atol=1e-9)
        differs |= not torch.allclose(
            whole,
            by_hand(
                model,
                {"default": grid([mask + [1.0 - r for r in rest]])},
                torch.tensor([prompt + written]),
            )[0],
        )
    assert differs, "the policy for generated tokens matters"
    # greedy: the cached decoding and the one without a cache write the same tokens
    with torch.no_grad(), gate({"default": gated}):
        options = {
            "attention_mask": attention,
            "do_sample": False,
            "repetition_penalty": 1.0,
            "max_new_tokens": new,
            "min_new_tokens": new,
        }
        greedy = model.generate(input_ids=ids, **options)
        assert torch.equal(greedy, model.generate(input_ids=ids, use_cache=False, **options))
    for row, prompt in enumerate(PROMPTS):
        rest = (
            answer[row].tolist() if answer is not None else [1.0 if policy == "on" else 0.0] * new
        )
        tokens = list(prompt)
        for step in range(new):
            mask = MASKS[row] + rest[:step]
            logits = by_hand(model, {"default": grid([mask])}, torch.tensor([tokens]))[0, -1]
            logits[model.generation_config.eos_token_id or 0] = -torch.inf  # as min_new_tokens does
            tokens.append(int(logits.argmax()))
        assert tokens[len(prompt) :] == greedy[row, width:].tolist()


def test_all_off_is_the_base_and_all_on_the_adapter_and_no_hook_stays():
    model = peft_model("llama")
    ids = torch.tensor([PROMPTS[1]])
    gate = AdapterGate(model)
    with torch.no_grad():
        plain = model(input_ids=ids).logits
        with model.disable_adapter():
            base = model(input_ids=ids).logits
        for value, policy, want in ((0.0, "off", base), (1.0, "on", plain)):
            with gate({"default": Gate(torch.full(ids.shape, value), policy)}):
                assert torch.allclose(model(input_ids=ids).logits, want, atol=1e-10)
    assert not torch.allclose(plain, base, atol=1e-2)

    def hooks():
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())

    before = hooks()
    with (
        pytest.raises(RuntimeError, match="on purpose"),
        gate({"default": Gate(torch.zeros(ids.shape), "off")}),
    ):
        assert hooks() > before
        raise RuntimeError("on purpose")
    assert hooks() == before
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, plain)


def test_what_cannot_be_gated_is_refused_in_one_sentence():
    with pytest.raises(SubloraError, match="is a DoRA"):
        AdapterGate(peft_model("qwen2", use_dora=True))
    model = peft_model("qwen2")
    model.merge_adapter()
    with pytest.raises(SubloraError, match="merged into the weights"):
        AdapterGate(model)
    model.unmerge_adapter()
    AdapterGate(model)
    with pytest.raises(SubloraError, match="no LoRA adapter"):
        AdapterGate(base_model("qwen2"))
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "embed_tokens"])
    with pytest.raises(SubloraError, match="sits on a Embedding"):
        AdapterGate(get_peft_model(base_model("qwen2"), config))
    config = LoraConfig(
        task_type="CAUSAL_LM", r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]
    )
    headed = get_peft_model(base_model("llama"), config).eval()
    for name, parameter in headed.named_parameters():
        if "modules_to_save" in name:
            parameter.data += torch.randn(parameter.shape, dtype=parameter.dtype)
    with pytest.raises(
        SubloraError, match="off is not the base"
    ):  # a trained head stays when LoRA is off
        AdapterGate(headed)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Gate(torch.zeros(3), "off"), "shape"),
        (lambda: Gate(torch.zeros(1, 3), "maybe"), "choose on, off or mask"),
        (lambda: Gate(torch.zeros(1, 3), "mask"), "give both or neither"),
        (lambda: Gate(torch.zeros(1, 3), "on", torch.zeros(1, 2)), "give both or neither"),
        (lambda: Gate(torch.zeros(2, 3), "mask", torch.zeros(1, 2)), "beside 2 prompts"),
    ],
)
def test_gates_that_make_no_sense(build, message):
    with pytest.raises(SubloraError, match=message):
        build()


def test_masks_that_do_not_fit_the_batch():
    model = peft_model("qwen2")
    gate, ids = AdapterGate(model), torch.tensor([PROMPTS[0]])

    def read(mask, policy="off", answer=None, **options):
        with (
            torch.no_grad(),
            gate({options.pop("adapter", "default"): Gate(mask, policy, answer, **options)}),
        ):
            return model(input_ids=ids)

    with pytest.raises(SubloraError, match="mask of 20 tokens and the prompt only 7"):
        read(torch.ones(1, 20))
    with pytest.raises(SubloraError, match="has 2 rows and the batch 1"):
        read(torch.ones(2, 7))
    with pytest.raises(SubloraError, match="no adapter 'other'"):
        read(torch.ones(1, 7), adapter="other")
    with pytest.raises(SubloraError, match="selects no layer"):
        read(torch.ones(1, 7), layers=(5, 9))
    with pytest.raises(SubloraError, match="values for 1 generated tokens"):
        read(torch.ones(1, 3), "mask", torch.ones(1, 1))


# Packs


CONDITIONS = {
    "all": Condition(generated="on"),
    "off": Condition(on=(), generated="off"),
    "some": Condition(on=("user",), generated="off"),
    "some, then on": Condition(on=("user",), generated="on"),
    "attention": Condition(off=("user",), generated="mask", modules="attention"),
    "late feed-forward": Condition(generated="on", layers=(1, 1), modules="feed-forward"),
}


def own_masks():
    """[condition][prompt]: the random masks stand for the class `user`."""
    return [
        [[float(c.acts_on("user" if m else "template")) for m in mask] for mask in MASKS]
        for c in CONDITIONS.values()
    ]


def peft_of(model, stack, place, specs, folder) -> PeftModel:
    group, row = stack.student_rows()[place]
    folder.mkdir()
    save_student(group, row, specs[stack.order[place]], folder, model, "base")
    return PeftModel.from_pretrained(copy.deepcopy(model), folder).eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows_at_once", [1, 1000])
def test_a_gated_pack_equals_the_gated_peft_adapter(kind, rows_at_once, tmp_path):
    model, sampling, new = base_model(kind), Sampling(max_new_tokens=4), 4
    stack, masks, conditions = random_stack(model, SPECS), own_masks(), list(CONDITIONS.values())
    prompts = PROMPTS * len(conditions)
    sequences = [(5,), (5, 6), (5, 6, 7), (9, 9)]
    uniforms = np.tile(
        np.random.default_rng(3).random((3, len(PROMPTS), 2, new)), (1, len(conditions), 1, 1)
    )
    scores = torch.zeros(3, len(prompts), len(sequences), dtype=torch.float64)
    answers = [[None] * len(prompts) for _ in range(3)]
    gate = pack_gate(masks, conditions, list(stack.linears))
    with torch.inference_mode(), PackedModel(model, stack, gate) as packed:
        packed.form_weights(1000)
        for filled in prefill(packed, prompts, rows_at_once):
            scores[:, filled.rows] = score_sequences(packed, filled, sequences, rows_at_once)
            for k, rows in enumerate(
                sample_answers(packed, filled, uniforms[:, filled.rows], sampling, ())
            ):
                for row, samples in zip(filled.rows, rows, strict=True):
                    answers[k][row] = samples
    for place in range(3):
        own = peft_of(model, stack, place, SPECS, tmp_path / str(place))
        adapter = AdapterGate(own)
        for c, condition in enumerate(conditions):
            for q, prompt in enumerate(PROMPTS):
                state = "on" if condition.acts_on("generated") else "off"
                gated = Gate(
                    grid([masks[c][q]]), state, layers=condition.layers, modules=condition.modules
                )
                with torch.inference_mode(), adapter({"default": gated}):
                    for s, sequence in enumerate(sequences):
                        logp = (
                            own(input_ids=torch.tensor([[*prompt, *sequence]]))
                            .logits[0]
                            .log_softmax(-1)
                        )
                        want = sum(
                            logp[len(prompt) - 1 + i, t].item() for i, t in enumerate(sequence)
                        )
                        assert scores[place, c * len(PROMPTS) + q, s].item() == pytest.approx(
                            want, abs=1e-8
                        )
                    if q < 2 and place < 2:
                        for sample in range(2):
                            written = []
                            for step in range(new):
                                p = (
                                    own(input_ids=torch.tensor([[*prompt, *written]]))
                                    .logits[0, -1]
                                    .double()
                                    .softmax(-1)
                                )
                                u = uniforms[place, q, sample, step]
                                written.append(
                                    int(np.searchsorted(np.cumsum(p.numpy()), u, side="right"))
                                )
                            assert answers[place][c * len(PROMPTS) + q][sample] == written


def test_pack_gate_all_on_and_all_off_in_both_precisions():
    for dtype, room in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        model = base_model("qwen2", dtype)
        stack = random_stack(model, SPECS)
        for value, condition, plain in (
            (1.0, Condition(generated="on"), [merged(model, stack, i) for i in range(3)]),
            (0.0, Condition(on=(), generated="off"), [model] * 3),
        ):
            with torch.inference_mode():
                wanted = [[own(torch.tensor([p])).logits[0, -1] for p in PROMPTS] for own in plain]
            gate = pack_gate(
                [[[value] * len(p) for p in PROMPTS]], [condition], list(stack.linears)
            )
            with torch.inference_mode(), PackedModel(model, stack, gate) as packed:
                packed.form_weights(1000)
                for filled in prefill(packed, PROMPTS, 1000):
                    logits = filled.logits.view(3, len(filled.rows), -1)
                    for k in range(3):
                        for j, i in enumerate(filled.rows):
                            assert torch.allclose(logits[k, j], wanted[k][i].to(logits), atol=room)


def test_pack_masks_that_do_not_fit():
    gate = PackGate([[1.0] * 3], [1.0], [0], {})
    with pytest.raises(SubloraError, match="3 values for a prompt of 2 tokens"):
        gate.check([[1, 2]])
    with pytest.raises(SubloraError, match="1 masks for 2 prompts"):
        gate.check([[1, 2, 3], [4]])
    with pytest.raises(SubloraError, match="mask has 3 values for a prompt of 2"):
        stack_masks([[1, 1, 1]], width=2)
