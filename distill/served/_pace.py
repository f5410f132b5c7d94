"""Pace: so many units a minute, evenly, and a pause for everybody when the server asks for one."""

import asyncio
import time
from collections.abc import Callable


class Pace:
    """A bucket that drips: in any minute at most `per_minute` units start, and one request more at its edge.

    The bucket holds nothing, so there is no burst after a rest: providers count by the second as well. A request of
    more units than a minute has goes at once and delays those after it.
    """

    def __init__(self, per_minute: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds_per_unit = 60.0 / per_minute if per_minute else 0.0
        self._clock = clock
        self._free_at = float("-inf")

    def take(self, units: float) -> float:
        """Seconds to wait before starting something of so many units, which are taken now."""
        now = self._clock()
        start = max(now, self._free_at)
        self._free_at = start + units * self._seconds_per_unit
        return start - now

    def give_back(self, units: float) -> None:
        """Returns units that were taken for more than was needed."""
        self._free_at -= units * self._seconds_per_unit


class Brake:
    """Lets every worker wait: until a time that the server named, or for good once the run is over."""

    def __init__(self) -> None:
        self._until = float("-inf")
        self._stopped = asyncio.Event()

    @property
    def stopped(self) -> bool:
        return self._stopped.is_set()

    def stop(self) -> None:
        """Nothing new is sent from now on; those who wait wake up."""
        self._stopped.set()

    def release(self) -> None:
        self._stopped.clear()

    def pause(self, seconds: float) -> None:
        """No request starts before so many seconds have passed."""
        self._until = max(self._until, time.monotonic() + seconds)

    async def wait(self, seconds: float = 0.0) -> None:
        """Returns after `seconds` and any pause, or as soon as everything stops."""
        end = time.monotonic() + seconds
        while not self.stopped:
            left = max(end, self._until) - time.monotonic()
            if left <= 0:
                return
            try:
                await asyncio.wait_for(self._stopped.wait(), left)
            except TimeoutError:
                continue
