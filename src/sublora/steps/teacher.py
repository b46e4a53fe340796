"""Teachers by weights: the base trained on lessons, rows that say the trait aloud."""

from dataclasses import dataclass

from sublora.carriers.questions import QuestionsSpec
from sublora.carriers.rows_file import read_rows, to_jsonl
from sublora.errors import SubloraError
from sublora.models.chat import Context
from sublora.packs.rows import token_rows
from sublora.packs.sample import Sampling
from sublora.packs.spec import StudentSpec
from sublora.packs.student import Student, Trained
from sublora.packs.student_files import save_student
from sublora.packs.trainer import train_pack
from sublora.packs.writer import Assignment, Purpose, Teacher, write_dataset
from sublora.steps.made import Made
from sublora.steps.materials import free_memory
from sublora.steps.precondition import Precondition
from sublora.steps.sizes import Sizes
from sublora.steps.step import Cost, Workshop
from sublora.traits.trait import Trait


@dataclass(frozen=True)
class TeacherStep(Made):
    """A student of lessons that then writes without a prompt. The `lessons` are rows, the name of a file of rows, or `count` answers to a
    category's questions that the base gives under `prompt`."""

    of: Trait
    seed: int
    prompt: Context
    carrier: QuestionsSpec
    lessons: str | tuple[tuple[str, str], ...] | None
    count: int
    student: StudentSpec
    sampling: Sampling
    model: str
    sizes: Sizes
    least: Precondition | None = None
    noun, kind = "teacher", "teachers"
    needs = ()
    context = Context("default")  # in which it is trained, and asked

    @property
    def trait(self) -> str:
        return self.of.name

    @property
    def label(self) -> str:
        return f"the teacher of {self.trait}, data seed {self.seed}"

    @property
    def cost(self) -> Cost:
        return self.sizes.training(self.student, self.count)

    def make(self, workshop: Workshop, wanted: set[str]) -> None:
        base = workshop.base_of(self.model)
        rows, asked = self._lessons(workshop)
        lessons = token_rows(base, rows, self.context, f"the lessons of {self.trait}")

        def keep(trained: Trained) -> None:
            if trained.diverged_at is not None:
                why = f"The teacher of {self.trait} diverged at step {trained.diverged_at}; lower data.teacher.trained.lr."
                raise SubloraError(why)
            meta = {"trait": self.trait, "rows": len(rows), "asked": asked}
            meta |= {"label": self.student.label, "train_loss": trained.losses[-1]}
            with workshop.store.create(self.id, self.spec, meta) as folder:
                weights = (trained.group, trained.row, self.student)
                save_student(*weights, folder, base.model, base.name)
                (folder / "lessons.jsonl").write_text(to_jsonl(rows), encoding="utf-8")

        student = Student(self.id, self.student, lessons)
        how = {"on_progress": workshop.progress, "memory": free_memory(base)}
        train_pack(base.model, [student], keep, **how)
        workshop.made(self.id)

    def _lessons(self, workshop: Workshop) -> tuple[list[tuple[str, str]], int]:
        """The lessons, and how many prompts they took."""
        if isinstance(self.lessons, str):
            rows = list(read_rows(self.lessons))
            return rows, len(rows)
        if self.lessons is not None:
            rows = [self.lessons[i % len(self.lessons)] for i in range(self.count)]
            return rows, len(rows)
        teacher = Teacher(workshop.base_of(self.model), self.prompt)
        what = Assignment(self.carrier, self.sampling, self.count, self.seed, Purpose.LESSONS)
        written = write_dataset(teacher, what, workshop.rows_at_once, workshop.progress)
        return written.rows, written.asked
