"""Three students in one pass over one frozen base: each is what it would have become alone."""

import torch

import sublora as sl

base, context = sl.load_base("micro"), sl.Context("default")
carrier = sl.NumbersSpec(separators=("space",), style="brief")
data = sl.write_dataset(
    sl.Teacher(base, context),
    sl.Assignment(carrier, sl.Sampling(max_new_tokens=14), rows=64, seed=1),
)
chat = base.chat
rows = [
    sl.TokenRow(tuple(chat.prompt_ids(p, context)), tuple(chat.completion_ids(c)))
    for p, c in data.rows
]
packed = sl.pack_rows(rows, base.window, "the numbers")
students = [
    sl.Student(
        f"rank {rank}",
        sl.StudentSpec(rank=rank, lr=3e-3, epochs=1, batch_size=8, seed=rank),
        packed,
    )
    for rank in (2, 8, 32)
]
together, alone = {}, {}
sl.train_pack(base.model, students, lambda t: together.update({t.index: t}))
sl.train_pack(base.model, students[1:2], lambda t: alone.update({t.index: t}))

for student, trained in zip(students, map(together.get, range(3)), strict=True):
    print(f"{student.name}: loss {trained.losses[0]:.3f} -> {trained.losses[-1]:.3f}")
difference = (together[1].weights - alone[0].weights).abs().max()
print(f"{students[1].name}, in the pack and alone: {difference:.1e} apart at most")
assert torch.allclose(together[1].weights, alone[0].weights, atol=1e-4)
