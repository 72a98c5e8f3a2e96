"""Requests that are no HTTP: aiohttp answers them with 400, and would log each as an error of ours."""

from __future__ import annotations

import logging

from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.log import server_logger


def keep_bad_requests_quiet() -> None:
    """Log them for who asks for everything only: whoever reaches a port may send as many as he likes."""
    server_logger.addFilter(_lower)  # which takes one only once


def _lower(record: logging.LogRecord) -> bool:
    if not record.exc_info or not isinstance(record.exc_info[1], HttpProcessingError):
        return True
    record.levelno, record.levelname = logging.DEBUG, logging.getLevelName(logging.DEBUG)
    return server_logger.isEnabledFor(logging.DEBUG)
