"""The queueing networks by name, with the numbers published for QGym and PATHWISE."""

from dataclasses import dataclass
from itertools import chain
from math import isfinite

ARRIVAL_RATE = 9 / 140
"""Of each stream of the re-entrant networks."""
STATION_RATES = ((1 / 8, 1 / 2, 1 / 4), (1 / 6, 1 / 7, 1.0))
"""Service rates of the three classes of a re-entrant station: of the first, third, ... station,
and of the second, fourth, ..."""


@dataclass(frozen=True)
class Network:
    """Classes of jobs, each with a queue of its own, and the servers that can serve them.

    Raises:
        ValueError: for no class or no server, parts of different lengths, a rate or cost that is
            negative or not finite, no arrivals or no costs at all, a successor that is no class, a
            class that nobody serves, or a job that never leaves.
    """

    arrival_rates: tuple[float, ...]
    """Of each class: jobs that come from outside in a unit of time, 0 for none."""
    service_rates: tuple[tuple[float, ...], ...]
    """Of each server, then of each class: 0 where the server does not serve the class."""
    successors: tuple[int | None, ...]
    """The class that a job of each class joins once it is served, or None where it leaves."""
    holding_costs: tuple[float, ...]
    """Of each class: the cost of a job in a unit of time."""

    def __post_init__(self) -> None:
        size = len(self.arrival_rates)
        for name, number in (("classes", size), ("servers", len(self.service_rates))):
            if not number:
                raise ValueError(f"{number} {name} of a network must be at least 1")
        for part in (self.successors, self.holding_costs, *self.service_rates):
            if len(part) != size:
                raise ValueError(f"{part} of a network of {size} classes must have {size} entries")
        for numbers in (self.arrival_rates, self.holding_costs, self.all_service_rates):
            if not all(isfinite(number) and number >= 0 for number in numbers) or not any(numbers):
                raise ValueError(
                    f"{numbers} of a network must be finite, at least 0, and not all 0"
                )
        for job, successor in enumerate(self.successors):
            if successor is not None and successor not in range(size):
                raise ValueError(
                    f"successor {successor!r} of class {job} of a network must be None or a class, "
                    f"0 to {size - 1}"
                )
        for job in range(size):
            if not any(rates[job] for rates in self.service_rates):
                raise ValueError(f"class {job} of a network must have a server")
            if len(self.route(job)) > size:
                raise ValueError(f"a job of class {job} of a network must leave in the end")

    @property
    def all_service_rates(self) -> tuple[float, ...]:
        """The service rates, server by server."""
        return tuple(chain(*self.service_rates))

    @property
    def streams(self) -> tuple[int, ...]:
        """The classes that jobs from outside join."""
        return tuple(job for job, rate in enumerate(self.arrival_rates) if rate)

    @property
    def choices(self) -> tuple[tuple[int, ...], ...]:
        """The classes that each server can serve, in order."""
        return tuple(tuple(i for i, rate in enumerate(row) if rate) for row in self.service_rates)

    @property
    def event_rate(self) -> float:
        """Arrivals and services in a unit of time, in the long run, if no queue grows for ever."""
        return sum(self.arrival_rates[job] * (1 + len(self.route(job))) for job in self.streams)

    def route(self, job: int) -> list[int]:
        """Return the classes that a job passes, from a class on."""
        passed, following = [job], self.successors[job]
        while following is not None and len(passed) <= len(self.successors):
            passed.append(following)
            following = self.successors[following]
        return passed


def make_reentrant(family: int, stations: int) -> Network:
    """Return a re-entrant network; class `3 s + p` is pass `p` through station `s`.

    In both families the first stream joins at pass 0. In family 2 its jobs make all three passes.
    In family 1 they make two and leave, and a second stream makes the third.
    """
    size = 3 * stations
    arrival_rates = [0.0] * size
    arrival_rates[0] = ARRIVAL_RATE
    successors: list[int | None] = [*range(3, size), 1, 2, None]
    if family == 1:
        successors[size - 2] = None
        arrival_rates[2] = ARRIVAL_RATE
    service_rates = [
        (0.0,) * (3 * s) + STATION_RATES[s % 2] + (0.0,) * (size - 3 * s - 3)
        for s in range(stations)
    ]
    return Network(
        tuple(arrival_rates), tuple(service_rates), tuple(successors), holding_costs=(1.0,) * size
    )


SYSTEMS = {
    "criss-cross": Network(
        arrival_rates=(0.9, 0.0, 0.9),
        service_rates=((2.0, 0.0, 2.0), (0.0, 1.0, 0.0)),
        successors=(1, None, None),
        holding_costs=(1.0, 1.0, 1.0),
    ),
    "n-model": Network(
        arrival_rates=(0.38, 1.235),
        service_rates=((1.0, 0.5), (0.0, 1.0)),
        successors=(None, None),
        holding_costs=(1.0, 3.0),
    ),
    **{f"reentrant-{f}-{n}": make_reentrant(f, n) for f in (1, 2) for n in range(2, 11)},
}
"""Name to network. QGym is arXiv 2410.06170, PATHWISE arXiv 2409.03740."""
