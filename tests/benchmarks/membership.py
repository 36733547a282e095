"""Who the nodes of a measured cluster are, and what stands in etcd for each: one route and one application."""

from ergo_registrar import ApplicationMode, ApplicationRoute, ApplicationState, Options, Route
from ergo_registrar.core import keys
from ergo_registrar.core.edf import encode_application_route, encode_routes

CLUSTER = "benchmark"
APPLICATION = "web"


def name_of(number: int) -> str:
    """Return the name of a node by its number."""
    return f"node{number:04}@host{number:04}"


def names_of(ranges: list[tuple[int, int]]) -> set[str]:
    """Return the names of all nodes from each first number to before each last one."""
    return {name_of(number) for first, last in ranges for number in range(first, last)}


def routes_of() -> list[Route]:
    """Return how any of them can be reached."""
    return [Route(host="127.0.0.1", port=15000)]


def application_of(name: str, weight: int = 1) -> ApplicationRoute:
    """Return the application that a node runs."""
    return ApplicationRoute(name, APPLICATION, weight, ApplicationMode.PERMANENT, ApplicationState.RUNNING)


def options_for(endpoint: str) -> Options:
    """Return the options of every registrar: those of any user, but for the patience while hundreds start at once."""
    return Options(cluster=CLUSTER, endpoints=(endpoint,), dial_timeout=300, request_timeout=300)


def node_entry(name: str) -> tuple[bytes, bytes]:
    """Return the key and value that stand for a node's routes."""
    return keys.node_key(CLUSTER, name), encode_routes(routes_of())


def application_entry(name: str, weight: int = 1) -> tuple[bytes, bytes]:
    """Return the key and value that stand for a node's application."""
    return keys.application_key(CLUSTER, APPLICATION, name), encode_application_route(application_of(name, weight))
