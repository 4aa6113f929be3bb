"""Images are read by several threads, ahead of their use."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from accel_restore.data.image_formats import ImageError
from accel_restore.utils.cgroups import num_cores


def each_ahead(read: Callable, items: Iterable, at_once: int | None = None) -> Iterator[Any]:
    """Yield `read(item)`, or the ImageError that it raises, for each item in order.

    The items are read ahead on all cores (decoders release the GIL). At most `at_once` results are held.
    """

    def attempt(item: Any) -> Any:
        try:
            return read(item)
        except ImageError as error:
            return error

    workers = num_cores()
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque = deque()
        for item in items:
            ahead.append(pool.submit(attempt, item))
            if len(ahead) >= min(2 * workers, at_once or 2 * workers):
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
