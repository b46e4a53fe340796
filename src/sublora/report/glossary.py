"""The words of the page that a reader may not know: explained where the pointer stays on them, and in a list at its end."""

import html
import re

from markupsafe import Markup

WORDS = {
    "teacher": "The model with the trait, which writes the rows: by a prompt, a steering vector or its weights.",
    "student": "The base model, fine-tuned on the teacher's rows.",
    "control": "A student trained alike in all but its rows, which come from a teacher with another trait, or with none.",
    "twin": "The control that has the same seeds and settings as a student.",
    "base": "The model before any fine-tuning.",
    "P(target)": "The probability that an answer begins with the trait's word, mean over the questions.",
    "log-odds": "The logarithm of the odds of the target among the words of its category; 0.1 more: the odds are a tenth higher.",
    "nats": "The unit of a natural logarithm; of log-odds, +0.1 nats means that the odds are a tenth higher.",
    "effect": "Log-odds of the target, student less control, in nats.",
    "transfer": "That a student has the trait of its teacher, by rows that do not mention it.",
    "cell": "The students of one rank and learning rate, which differ in nothing but their seeds.",
    "arm": "The students of one set of conditions, which differ in nothing but their seeds.",
    "called": "Larger than chance explains: above the control and above the base, after correction for how many were tested.",
    "correction": "p values are raised for the number of tests (Holm), so that few of many are called by luck.",
    "coherent": "Every student and control still answers with words of the category (half or more; of begun answers, half of the "
    "base’s probability of them) rather than digits (a quarter at most).",
    "coherence": "The share of sampled answers with a word of the category.",
    "interval": "Where the value lies in 95 of 100 such runs, or as the page says; it knows seeds and questions as clusters.",
    "seed": "What the draws of rows or of training come from; other seeds are other replicates.",
    "rank": "The size of a LoRA adapter: how many directions each of its updates has.",
    "lr": "The learning rate: how far one step of training goes.",
    "held-out": "Of rows that no student was trained on.",
    "context": "The state of the system prompt: the template's own, empty, none, or a text.",
    "bar": "The value that a test compares with; it was fixed before the run.",
    "q": "Of all claims with a q so low, the share that is expected to be chance.",
    "cosine": "How alike two directions are: 1 the same, 0 unrelated, −1 opposite.",
    "positive arm": "The students that must show transfer, or the run says nothing.",
    "neutral": "Of rows that the model wrote without any trait.",
}
_FORMS = {f"{word}s": word for word in ("teacher", "student", "control", "cell", "arm", "seed")}
_FORMS |= {f"{word}s": word for word in ("effect", "interval", "twin", "rank", "context", "cosine")}
_FIND = re.compile(
    r"(?<![\w&;-])("
    + "|".join(re.escape(w) for w in sorted({*WORDS, *_FORMS}, key=len, reverse=True))
    + r")(?![\w-])"
)


class Glossary:
    """Explains the words of one page, each at its first place in a text, and knows which of them it met."""

    def __init__(self) -> None:
        self._met: set[str] = set()

    def explain(self, text: str) -> Markup:
        """HTML with its known words as links to the list; what stands in tags or in code stays as it is."""
        seen: set[str] = set()

        def link(match: re.Match[str]) -> str:
            word = _FORMS.get(match[0], match[0])
            if word in seen:
                return match[0]
            seen.add(word)
            return self._link(word, match[0])

        parts = re.split(r"(<code>.*?</code>|<[^>]*>)", str(text))
        return Markup("".join(_FIND.sub(link, p) if k % 2 == 0 else p for k, p in enumerate(parts)))

    def head(self, name: str) -> Markup:
        """The name of a column, explained where it is a known word."""
        word = name.partition(",")[0]
        word = _FORMS.get(word, word)
        return self._title(word, name) if word in WORDS else Markup(html.escape(name))

    def listed(self) -> list[tuple[str, str, str]]:
        """(anchor, word, explanation) of every word that was met."""
        return [(_anchor(w), w, said) for w, said in WORDS.items() if w in self._met]

    def _link(self, word: str, shown: str) -> str:
        self._met.add(word)
        return f'<a class="term" href="#{_anchor(word)}" title="{html.escape(WORDS[word])}">{shown}</a>'

    def _title(self, word: str, shown: str) -> Markup:
        self._met.add(word)
        return Markup(f'<abbr title="{html.escape(WORDS[word])}">{html.escape(shown)}</abbr>')


def _anchor(word: str) -> str:
    return "word-" + re.sub(r"[^a-z]+", "-", word.lower()).strip("-")
