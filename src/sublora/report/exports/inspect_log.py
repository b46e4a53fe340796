"""A run as logs of Inspect (inspect_ai): one log for each measurement, one sample for each question and drawn answer."""

from pathlib import Path
from typing import Any

from sublora.analysis.frame import needs
from sublora.report.exports.answers import Asked, asked
from sublora.report.loaded import LoadedRun
from sublora.store import Store
from sublora.text import slug
from sublora.traits.answers import hit
from sublora.traits.trait import find_trait, load_categories

RULE = "whole_word"


def export_inspect(run: LoadedRun, store: Store, out: Path) -> list[Path]:
    """Write logs that `inspect view --log-dir OUT` opens; the score of a sample is whether it names the trait as a whole word.

    Raises SubloraError where inspect_ai is not installed, or the store has lost an artifact.
    """
    log = needs("inspect_ai.log", "sublora[inspect]")
    files = (run.manifest.get("recipe") or {}).get("trait_files") or ()
    categories = load_categories(tuple(map(Path, files)))
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for one in asked(run, store):
        trait = find_trait(str(one.row["trait"]), categories)
        name = slug(f"{trait.entity.name} {one.who} {one.row['measurement_id'][-8:]}")
        made = _log(log, run, one, lambda text, e=trait.entity: hit(text, e, RULE))
        log.write_eval_log(made, str(out / f"{name}.eval"))
        written.append(out / f"{name}.eval")
    return written


def _log(log: Any, run: LoadedRun, one: Asked, names: Any) -> Any:
    from inspect_ai.model import ModelOutput
    from inspect_ai.scorer import Score

    model = str((run.manifest.get("model") or {}).get("name") or "none")
    target, when = str(one.row["target"]), str(run.manifest.get("started"))
    samples, hits = [], []
    for number, (question, answers) in enumerate(one.answers.items(), 1):
        for epoch, answer in enumerate(answers, 1):
            hits.append(names(answer))
            output = ModelOutput.from_content(model, answer)
            score = Score(value=int(hits[-1]), answer=answer)
            samples.append(
                log.EvalSample(
                    id=number,
                    epoch=epoch,
                    input=question,
                    target=target,
                    messages=[],
                    output=output,
                    scores={RULE: score},
                )
            )
    rate = log.EvalMetric(name="mean", value=sum(hits) / len(hits) if hits else 0.0)
    epochs = max(map(len, one.answers.values()), default=1)
    spec = log.EvalSpec(
        created=when,
        task=f"{one.row['trait']}: {one.who}",
        dataset=log.EvalDataset(name=str(one.row["category"]), samples=len(one.answers)),
        model=model,
        config=log.EvalConfig(epochs=epochs),
        metadata={key: value for key, value in one.row.items() if value is not None},
        packages={"sublora": str(run.manifest.get("sublora", ""))},
    )
    scores = [log.EvalScore(name=RULE, scorer=RULE, metrics={"mean": rate})]
    counts = {"total_samples": len(samples), "completed_samples": len(samples)}
    found = log.EvalResults(scores=scores, **counts)
    return log.EvalLog(status="success", eval=spec, results=found, samples=samples)
