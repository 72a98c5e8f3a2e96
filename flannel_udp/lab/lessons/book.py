"""Which lessons there are: ours by number or name, and everybody's own by the path of a file."""

from __future__ import annotations

from pathlib import Path

from flannel_udp.errors import UsageError, did_you_mean
from flannel_udp.lab.lessons.language import ENGLISH
from flannel_udp.lab.lessons.lesson import Lesson, Outline
from flannel_udp.lab.lessons.reader import read_lesson

_FILES = Path(__file__).with_name("files")


def list_lessons(language: str = ENGLISH) -> tuple[Outline, ...]:
    """Return our lessons in their order."""
    lessons = [read_lesson(path, language, numbered=True) for path in our_files()]
    return tuple(
        Outline(lesson.number or 0, lesson.name, lesson.title, lesson.minutes, len(lesson.steps)) for lesson in lessons
    )


def our_files() -> list[Path]:
    """Return the files of our lessons in their order, without the translations."""
    return sorted(path for path in _FILES.glob("*.toml") if "." not in path.stem)


def find_lesson(said: str, language: str = ENGLISH) -> Lesson:
    """Return the lesson that somebody names: ``3``, ``mtu``, ``3-mtu`` or a path. Raises `UsageError`."""
    if "/" in said or said.endswith(".toml"):
        path = Path(said).absolute()
        return read_lesson(path, language, numbered=path.parent == _FILES)
    known: dict[str, Path] = {}
    for path in our_files():
        number, _, name = path.stem.partition("-")
        known |= dict.fromkeys((number, name, path.stem), path)
    if said not in known:
        names = [path.stem for path in our_files()]
        hint = did_you_mean(said, known)
        raise UsageError(f"there is no lesson {said!r}: there are {', '.join(names)}, or the path of a file{hint}")
    return read_lesson(known[said], language, numbered=True)
