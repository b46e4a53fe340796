"""The questions of a trait as a task of Inspect, for any model that Inspect reaches:

    inspect eval examples/inspect/questions.py --model hf/HuggingFaceTB/SmolLM2-135M-Instruct -T trait=otter

It asks what a run asks, draws `epochs` answers for each question, and scores whether one names the trait as a whole word.
"""

from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.model import GenerateConfig
from inspect_ai.scorer import Score, Target, mean, scorer, stderr
from inspect_ai.solver import TaskState, generate

import sublora as sl
from sublora.traits.answers import hit


@scorer(metrics=[mean(), stderr()])
def names_it(trait: str):
    """1 where the answer names the trait, its plural or an alias."""
    entity = sl.find_trait(trait, sl.load_categories()).entity

    async def score(state: TaskState, target: Target) -> Score:
        answer = state.output.completion
        return Score(value=int(hit(answer, entity, "whole_word")), answer=answer)

    return score


@task
def questions(trait: str = "otter", epochs: int = 20) -> Task:
    """All questions of the trait's category."""
    asked = sl.find_trait(trait, sl.load_categories()).category.questions
    return Task(
        dataset=[Sample(input=question, target=trait) for question in asked],
        solver=generate(),
        scorer=names_it(trait),
        epochs=epochs,
        config=GenerateConfig(temperature=1.0, max_tokens=16),
    )
