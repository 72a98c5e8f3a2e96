"""Lessons that check themselves: texts, a lab, and steps whose checks look at what the lab really is like.

Rooms, from the bottom: `lesson` (what a lesson is, values), `language` (which texts, words, how they are laid out),
`reader` (a lesson from its file, with its translation), `book` (which lessons there are), `looking` (is a check
fulfilled?), `record` (how far somebody is, kept in the lab's folder), `commands` (what solves a step, run), `course`
(start, check, hint, solve: the interface), `rehearsal` (a whole lesson by script, the wrong ways too). What the
commands print is in `actions`. The lessons are in `files`, a TOML file each, translations beside it; see
docs/teaching.md.
"""
