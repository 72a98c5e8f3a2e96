"""A lesson from its file, and its texts from the translation beside it; a fault is one line with line and key."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from flannel_udp.errors import FlannelError, did_you_mean
from flannel_udp.lab.lab import Lab
from flannel_udp.lab.lessons.language import ENGLISH
from flannel_udp.lab.lessons.lesson import Check, Lesson, Mistake, Requirement, Step, Wanted
from flannel_udp.lab.lessons.looking import CONDITIONS
from flannel_udp.lab.plan import DEFAULT_NAME, Plan
from flannel_udp.lab.toml_table import Table, parse, read_text, shown
from flannel_udp.lab.topology import Backends, plan_of

_KEYS = ("title", "minutes", "text", "topology", "steps")
_STEP_KEYS = ("name", "task", "checks", "hints", "solve", "learnt", "mistakes")
_KINDS = ("run", "counter", "agent")
_CHECK_KEYS = ("on", *_KINDS, "json", *CONDITIONS)
_REQUIREMENT_KEYS = (*_CHECK_KEYS, "otherwise")
_MISTAKE_KEYS = ("name", *_CHECK_KEYS, "hint", "made_by", "undone_by")
_AGENT = ("status", "peers")
_NODE = re.compile(r"net|r[1-9]\d*|h[1-9]\d*(/p[1-9]\d*)?")
_COUNTER = re.compile(r"[A-Za-z0-9]+")
_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
_FILE_NAME = re.compile(r"(?P<number>\d+)-(?P<name>.+)")

_TRANSLATED = ("title", "text", "steps")
_STEP_TEXTS = ("task", "learnt", "hints", "otherwise", "mistakes")


def read_lesson(path: Path, language: str = ENGLISH, *, numbered: bool = False) -> Lesson:
    """Read a lesson, in that language if there is a translation. Raises `UsageError`.

    `numbered`: the file's name begins with the lesson's number.
    """
    top = _open(path, "lesson")
    top.require(_KEYS)
    found = _FILE_NAME.fullmatch(path.stem) if numbered else None
    steps = tuple(_step(table) for table in top.tables("steps"))
    if not steps:
        top.wrong("steps", "is missing: a lesson has a step at least, each begins with [[steps]]")
    _require_apart(top.tables("steps"))
    lesson = Lesson(
        path=path,
        number=int(found["number"]) if found else None,
        name=found["name"] if found else path.stem,
        title=top.needed("title"),
        minutes=top.integer("minutes", 10, 1, 600),
        text=top.needed("text"),
        steps=steps,
        language=ENGLISH,
    )
    translation = translation_of(path, language)
    return lesson if translation is None else _translated(lesson, _open(translation, "translation"), language)


def plan_of_lesson(path: Path, backends: Backends, name: str = DEFAULT_NAME) -> Plan:
    """Return the plan of a lesson's lab, which has that name, and all nodes that are looked at. Raises `UsageError`."""
    top = _open(path, "lesson")
    topology = top.table("topology")
    if "name" in topology.values:
        topology.wrong("name", "a lesson's lab is named by whoever starts it")
    plan = plan_of(topology, backends, name)
    lab = Lab(plan)
    for step in top.tables("steps"):
        for table in (*step.tables("checks"), *step.tables("mistakes")):
            try:
                lab.node(table.text("on", ""))
            except FlannelError as error:
                table.wrong("on", str(error))
    return plan


def translation_of(path: Path, language: str) -> Path | None:
    """Return the file with a lesson's texts in that language, ``None`` if there is none."""
    if language == ENGLISH:
        return None
    beside = path.with_suffix(f".{language}{path.suffix}")
    return beside if beside.exists() else None


def _open(path: Path, what: str) -> Table:
    text = read_text(path, what)
    return Table(str(path), parse(path, text), source=text)


def _require_apart(tables: Sequence[Table]) -> None:
    names: set[object] = set()
    for table in tables:
        if (name := table.values["name"]) in names:
            table.wrong("name", f"{shown(name)} is there twice")
        names.add(name)


def _name(table: Table) -> str:
    name = table.needed("name")
    if not _NAME.fullmatch(name):
        table.wrong("name", f"{shown(name)} is no name: use lower-case letters, digits and dashes")
    return name


def _step(table: Table) -> Step:
    table.require(_STEP_KEYS)
    requirements = tuple(_requirement(each) for each in table.tables("checks"))
    if not requirements:
        table.wrong("checks", "is missing: what tells that the step is done?")
    mistakes = tuple(_mistake(each) for each in table.tables("mistakes"))
    _require_apart(table.tables("mistakes"))
    for key in ("hints", "solve"):
        if not table.texts(key):
            table.wrong(key, "is missing, or empty: it has to be a list of texts")
    return Step(
        name=_name(table),
        task=table.needed("task"),
        requirements=requirements,
        hints=table.texts("hints"),
        solve=table.texts("solve"),
        learnt=table.text("learnt", "").strip(),
        mistakes=mistakes,
    )


def _requirement(table: Table) -> Requirement:
    table.require(_REQUIREMENT_KEYS)
    return Requirement(_check(table), table.needed("otherwise"))


def _mistake(table: Table) -> Mistake:
    table.require(_MISTAKE_KEYS)
    if not table.texts("made_by"):
        table.wrong("made_by", "is missing, or empty: which commands make the mistake?")
    return Mistake(_name(table), _check(table), table.needed("hint"), table.texts("made_by"), table.texts("undone_by"))


def _check(table: Table) -> Check:
    on = table.needed("on")
    if not _NODE.fullmatch(on):
        table.wrong("on", f"{shown(on)} is no node such as h1, h1/p1, r1 or net")
    kind = _only(table, _KINDS, "says what is asked", None)
    what = table.word(kind, "", _AGENT) if kind == "agent" else table.needed(kind)
    if kind == "counter" and not _COUNTER.fullmatch(what):
        table.wrong(kind, f"{shown(what)} is no counter's name, such as IcmpInEchos (nstat -a)")
    condition = _only(table, tuple(CONDITIONS), "says what the answer has to be", "exit" if kind == "run" else None)
    wanted = _wanted(table, condition) if condition in table.values else 0
    if condition == "exit" and kind != "run":
        table.wrong("exit", "only a command has an exit code: `run`")
    return Check(on, kind, what, table.text("json", ""), condition, wanted)


def _only(table: Table, keys: Sequence[str], does: str, default: str | None) -> str:
    """Return the one of these keys that is there."""
    given = [key for key in table.values if key in keys]
    if len(given) > 1:
        table.wrong(given[1], f"{given[0]} is there already: only one of {', '.join(keys)} {does}")
    if given:
        return given[0]
    if default is None:
        table.wrong("on", f"nothing beside it {does}: give one of {', '.join(keys)}")
    return default


def _wanted(table: Table, condition: str) -> Wanted:
    value, kind = table.values[condition], CONDITIONS[condition][0]
    truth_for_number = kind is int and isinstance(value, bool)
    if not isinstance(value, str | int | bool) or not isinstance(value, kind) or truth_for_number:
        names = {str: "a text", int: "a whole number", bool: "true or false", object: "a text, a number, true or false"}
        table.wrong(condition, f"{shown(value)} is not {names[kind]}")
    if condition in ("matches", "lacks"):
        try:
            re.compile(str(value))
        except re.error as error:
            table.wrong(condition, f"{shown(value)} is no regular expression: {error}")
    return value


def _translated(lesson: Lesson, top: Table, language: str) -> Lesson:
    """Return the lesson with the texts of a translation; what it leaves out stays as it is. Raises `UsageError`."""
    top.require(_TRANSLATED)
    tables = top.table("steps")
    known = [step.name for step in lesson.steps]
    _check_names(tables, "step", known)
    return replace(
        lesson,
        title=top.text("title", lesson.title),
        text=top.text("text", lesson.text),
        steps=tuple(_translated_step(step, tables.table(step.name)) for step in lesson.steps),
        language=language,
    )


def _translated_step(step: Step, table: Table) -> Step:
    table.require(_STEP_TEXTS)
    mistakes = table.table("mistakes")
    known = [mistake.name for mistake in step.mistakes]
    _check_names(mistakes, "mistake", known)
    otherwise = _as_many(table, "otherwise", [each.otherwise for each in step.requirements])
    return replace(
        step,
        task=table.text("task", step.task).strip(),
        learnt=table.text("learnt", step.learnt).strip(),
        hints=tuple(_as_many(table, "hints", step.hints)),
        requirements=tuple(
            replace(each, otherwise=text) for each, text in zip(step.requirements, otherwise, strict=True)
        ),
        mistakes=tuple(replace(each, hint=mistakes.text(each.name, each.hint).strip()) for each in step.mistakes),
    )


def _as_many(table: Table, key: str, texts: Sequence[str]) -> Sequence[str]:
    translated = table.texts(key)
    if key in table.values and len(translated) != len(texts):
        table.wrong(key, f"has {len(translated)} texts, and the lesson has {len(texts)}")
    return translated or texts


def _check_names(table: Table, what: str, known: Sequence[str]) -> None:
    """Refuse a translation of something that the lesson has not."""
    for name in table.values:
        if name not in known:
            there_is = f"{', '.join(known)}{did_you_mean(name, known)}"
            table.wrong(name, f"the lesson has no such {what}, it has {there_is}")
