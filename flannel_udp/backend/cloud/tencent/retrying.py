"""How often Tencent's API is asked again: where it throttles, or has a fault of its own."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from tencentcloud.common.exception.tencent_cloud_sdk_exception import TencentCloudSDKException

from flannel_udp.backoff.delay import Backoff

ATTEMPTS = 4
FIRST_PAUSE_S, LAST_PAUSE_S = 0.5, 4.0
THROTTLED = ("RequestLimitExceeded", "LimitExceeded.ActionLimited")
"""Codes that say so, these and what follows them after a dot."""
_PASSING = (*THROTTLED, "ServerNetworkError", "InternalError", "InternalServerError", "ServiceUnavailable")
T = TypeVar("T")


class Retryer:
    """What the SDK has for that asks once more after a call that worked, if one before it had not (3.1.195)."""

    def send_request(self, call: Callable[[], T]) -> T:
        """Return what `call` returns, at last; the SDK calls this. Raises what `call` raises."""
        pauses = Backoff(FIRST_PAUSE_S, LAST_PAUSE_S, random.Random())  # noqa: S311 - no secret
        for _ in range(ATTEMPTS - 1):
            try:
                return call()
            except TencentCloudSDKException as error:
                if not is_one_of(error.code, _PASSING):
                    raise
            time.sleep(pauses.next_s())
        return call()


def is_one_of(code: str, kinds: tuple[str, ...]) -> bool:
    """Tell whether an error's code is one of these, or one of their kinds."""
    return any(code == kind or code.startswith(f"{kind}.") for kind in kinds)
