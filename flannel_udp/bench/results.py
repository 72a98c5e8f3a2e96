"""The JSON file of a run: how it is made, and read back with every doubt there can be about a file."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from flannel_udp.bench.samples import Sample, medians, n_rejected, ratios
from flannel_udp.errors import UnusableFile

FORMAT = 1
"""Of the file, in its `format`. Files of before that have none, and are read as 1: nothing else differs."""
_FORMER_OPTIONS: Mapping[str, Any] = {"family": 4}
"""What options that came later were before there was a choice, in labs."""
_TO = "to"
"""The option that says that it was no lab, but another host."""
_NAME_MAX = 100
_HOW = "give a file that `bench run` or `bench.forward --json` wrote"


@dataclass(frozen=True, slots=True)
class Place:
    """What was measured in one place, an underlay and what traffic goes between. `mtus` are the overlay's, in bytes."""

    name: str
    mtus: Mapping[str, int]
    samples: tuple[Sample, ...]


@dataclass(frozen=True, slots=True)
class Result:
    """A whole run. `targets` are the verdicts on what is promised, empty where none was asked for."""

    path: Path
    machine: Mapping[str, Any]
    options: Mapping[str, Any]
    places: tuple[Place, ...]
    targets: tuple[Mapping[str, Any], ...] = ()

    @property
    def n_rounds(self) -> int:
        """How many rounds there were."""
        return max((sample.round for place in self.places for sample in place.samples), default=0)


def place_name(underlay: str, between: str, version: int = 4) -> str:
    """Return how a place is called; `version` is the IP version of packets."""
    return f"underlay {underlay}, between {between}{'' if version == 4 else f', by IPv{version}'}"


def place_record(mtus: Mapping[str, int], samples: Sequence[Sample]) -> dict[str, Any]:
    """Return what was found in one place, ready for JSON."""
    of = medians(samples)
    return {
        "mtus": dict(mtus),
        "samples": [_sample_record(sample) for sample in samples],
        "rejected": n_rejected(samples),
        "medians": of,
        "ratios": ratios(of),
    }


def _sample_record(sample: Sample) -> dict[str, Any]:
    record = dataclasses.asdict(sample)
    if not sample.times_us:
        del record["times_us"]
    return record


def document(machine: Mapping[str, Any], options: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """Return all about a run, ready for JSON; `found` is one place's record, or `places` and what goes with them."""
    return {"format": FORMAT, "machine": dict(machine), "options": dict(options), **found}


def read_result(path: Path) -> Result:
    """Return the run that a file holds. Raises `UnusableFile` with one line on whatever it holds instead."""
    try:
        raw = json.loads(path.read_bytes())
    except OSError as error:
        raise UnusableFile(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UnusableFile(f"{path} is not JSON ({error}): it may have been cut short; {_HOW}") from None
    return _Reader(path).result(raw)


def result_of(path: Path, text: str) -> Result:
    """Return the run that a file's text tells of."""
    return _Reader(path).result(json.loads(text))


@dataclass(frozen=True, slots=True)
class _Reader:
    """Takes a document apart; the path is for what is said of it."""

    path: Path

    def result(self, raw: Any) -> Result:
        if not isinstance(raw, dict) or "machine" not in raw:
            self._fail("is no result of a bench: it has no `machine`")
        self._check_format(raw.get("format", FORMAT))
        if "options" not in raw or not ("samples" in raw or "places" in raw):
            self._fail("holds no samples: it is another bench's, or older than they are")
        machine = self._facts(raw["machine"], "machine")
        given = self._facts(raw["options"], "options")
        former = {} if _TO in given else _FORMER_OPTIONS
        options = given | {name: value for name, value in former.items() if name not in given}
        if "places" in raw:
            places = {
                self._name(name): self._mapping(each, name)
                for name, each in self._mapping(raw["places"], "places").items()
            }
        else:
            underlay, between = self._name(options.get("underlay")), self._name(options.get("between"))
            places = {place_name(underlay, between, self._whole(options["family"], "family")): raw}
        read = tuple(self._place(name, each) for name, each in places.items())
        if not any(place.samples for place in read):
            self._fail("holds no sample: nothing was measured")
        targets = tuple(self._mapping(each, "targets") for each in self._list(raw.get("targets", []), "targets"))
        return Result(self.path, machine, options, read, targets)

    def _check_format(self, found: Any) -> None:
        if found != FORMAT or isinstance(found, bool):
            newer = isinstance(found, int) and found > FORMAT
            self._fail(f"has format {found!r}, this flannel-udp reads {FORMAT}", "upgrade it" if newer else _HOW)

    def _place(self, name: str, raw: Mapping[str, Any]) -> Place:
        mtus = {
            self._name(who): self._whole(mtu, "mtus") for who, mtu in self._mapping(raw.get("mtus"), "mtus").items()
        }
        samples = tuple(self._sample(each) for each in self._list(raw.get("samples"), "samples"))
        return Place(name, mtus, samples)

    def _sample(self, raw: Any) -> Sample:
        fields = self._mapping(raw, "samples")
        accepted = fields.get("accepted")
        if not isinstance(accepted, bool):
            self._fail("has a sample of which `accepted` is neither true nor false")
        return Sample(
            self._whole(fields.get("round"), "round"),
            self._name(fields.get("contender")),
            self._name(fields.get("measure")),
            self._number(fields.get("foreign"), "foreign"),
            accepted,
            {
                self._name(name): self._number(value, name)
                for name, value in self._mapping(fields.get("values"), "values").items()
            },
            dict(
                self._round_trips(time_us, n)
                for time_us, n in self._mapping(fields.get("times_us", {}), "times_us").items()
            ),
        )

    def _round_trips(self, time_us: str, n: Any) -> tuple[int, int]:
        """Return a time in microseconds and how many round trips took as long."""
        if re.fullmatch(r"[1-9][0-9]{0,8}", time_us) and self._whole(n, "times_us") > 0:
            return int(time_us), int(n)
        return self._fail(f"has something else where a round trip belongs: {time_us[:40]!r}")

    def _facts(self, raw: Any, what: str) -> dict[str, Any]:
        """Return what is known of a machine or a run; every text in it can be shown."""
        facts = self._mapping(raw, what)
        for name, value in facts.items():
            self._name(name)
            if isinstance(value, str) and not value.isprintable():
                self._fail(f"has a text in {what} that cannot be shown")
        return dict(facts)

    def _mapping(self, raw: Any, what: str) -> Mapping[str, Any]:
        return raw if isinstance(raw, dict) else self._fail(f"has {what} that is no object")

    def _list(self, raw: Any, what: str) -> list[Any]:
        return raw if isinstance(raw, list) else self._fail(f"has {what} that is no list")

    def _name(self, raw: Any) -> str:
        """Names are shown: nothing that moves a terminal's cursor passes."""
        if isinstance(raw, str) and 0 < len(raw) <= _NAME_MAX and raw.isprintable():
            return raw
        return self._fail(f"has something else where a name belongs: {str(raw)[:40]!r}")

    def _number(self, raw: Any, what: str) -> float:
        if isinstance(raw, int | float) and not isinstance(raw, bool):
            with suppress(OverflowError):  # a whole number of hundreds of digits
                if math.isfinite(raw):
                    return float(raw)
        return self._fail(f"has something else where a number belongs, {what}: {str(raw)[:40]!r}")

    def _whole(self, raw: Any, what: str) -> int:
        number = self._number(raw, what)
        return int(number) if number == int(number) else self._fail(f"has {what} that is no whole number")

    def _fail(self, why: str, how: str = _HOW) -> NoReturn:
        raise UnusableFile(f"{self.path} {why}: {how}")
