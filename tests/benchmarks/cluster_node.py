"""`python -m tests.benchmarks.cluster_node SETUP`: a process of many registrars, each as a service would have one."""

import asyncio
import time

from ergo_registrar import (
    EventsMissed,
    NodeJoined,
    Registrar,
    RegistrarDisconnected,
    RegistrarError,
    State,
    Subscription,
)
from tests.benchmarks.membership import application_of, options_for, routes_of
from tests.benchmarks.worker import main


class Registrars:
    """Many registrars, each with a connection, a lease, five watches, and one subscriber who reads every event."""

    def __init__(self, endpoint: str) -> None:
        self.delivered = 0
        self._options = options_for(endpoint)
        self._registrars: dict[str, Registrar] = {}
        self._arrivals: dict[str, list[float]] = {}
        self._disconnected = 0
        self._missed = 0
        self._readers: list[asyncio.Task[None]] = []

    async def start(self, name: str) -> None:
        registrar = Registrar(self._options, node=name, routes=routes_of(), applications=[application_of(name)])
        await registrar.__aenter__()
        self._registrars[name] = registrar
        self._readers.append(asyncio.create_task(self._read(registrar.subscribe())))

    async def _read(self, subscription: Subscription) -> None:
        async for event in subscription:
            self.delivered += 1
            if type(event) is NodeJoined:
                stamps = self._arrivals.get(event.name)
                if stamps is not None:
                    stamps.append(time.monotonic())
            elif isinstance(event, RegistrarDisconnected):
                self._disconnected += 1
            elif isinstance(event, EventsMissed):
                self._missed += event.count

    def known(self, name: str) -> int:
        return self._registrars[name].health().nodes + 1

    async def seen(self, name: str) -> set[str]:
        return {name, *await self._registrars[name].nodes()}

    def expect(self, probes: list[str]) -> None:
        self._arrivals = {probe: [] for probe in probes}

    def arrivals(self) -> dict[str, list[float]]:
        return self._arrivals

    def faults(self) -> dict[str, float]:
        registrars = self._registrars.values()
        stats = [registrar.stats for registrar in registrars]
        return {
            "sessions lost": self._disconnected + sum(each.re_registrations for each in stats),
            "not connected": sum(registrar.state is not State.CONNECTED for registrar in registrars),
            "events missed": self._missed + sum(each.events_missed for each in stats),
            "connections replaced": sum(each.connections_replaced for each in stats),
            "read anew": sum(each.listings - 1 for each in stats),
            "repairs": sum(each.repairs for each in stats),
        }


if __name__ == "__main__":
    main(Registrars, RegistrarError)
