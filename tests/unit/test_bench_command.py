"""What a bench says of itself: the text of its module, line by line as it is written there."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bench import cni, encap, instructions, lookup


@pytest.mark.parametrize(
    ("main", "text"),
    [
        (cni.main, cni.__doc__),
        (encap.main, encap.__doc__),
        (instructions.main, instructions.__doc__),
        (lookup.main, lookup.__doc__),
    ],
)
def test_help_keeps_the_lines_of_the_examples(
    main: Callable[[list[str]], int], text: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert str(text) in capsys.readouterr().out
