"Speed, each time beside a straightforward version measured in the same run"
import statistics
import time
from collections.abc import Callable


def alternate(
    *versions: Callable[[], object],  # that do the same work
    rounds: int = 9
) -> list[float]:                     # median seconds of each
    "Time versions of a job in turn, so that a slow moment of the machine meets all of them"
    for f in versions: f()
    seconds: list[list[float]] = [[] for _ in versions]
    for _ in range(rounds):
        for f, taken in zip(versions, seconds, strict=True):
            start = time.perf_counter()
            f()
            taken.append(time.perf_counter() - start)
    return [statistics.median(s) for s in seconds]


def row(
    what: str,
    plain: float,          # seconds
    ours: float,           # seconds
    same: str,             # difference of the outputs
    aim: float | None = None,  # ratio aimed at
    unit: str = 's'            # of both
) -> dict[str, object]:
    "One line of the table"
    return {'what': what, 'plain_s': plain, 'ours_s': ours, 'ratio': plain / ours, 'aim': aim, 'same': same,
            'unit': unit}
