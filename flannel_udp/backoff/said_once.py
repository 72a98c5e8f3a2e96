"""What fails again and again is logged when the reason changes, and once when it works."""

from __future__ import annotations


class SaidOnce:
    """Why one thing fails at present, if it does. The caller writes the log lines: the words are each room's own."""

    def __init__(self) -> None:
        self._reason: object = None

    def failed(self, reason: object) -> bool:
        """Note a failure; tell whether its reason (never ``None``) is another than that of the last try."""
        is_news = reason != self._reason
        self._reason = reason
        return is_news

    def worked(self) -> bool:
        """Note a success; tell whether the last try was a failure."""
        is_news = self._reason is not None
        self._reason = None
        return is_news
