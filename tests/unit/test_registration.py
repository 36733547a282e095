"""What a process publishes, checked before anything is sent."""

from typing import Any

import msgspec
import pytest

from ergo_registrar.core.edf import decode_application_route, decode_routes
from ergo_registrar.core.registration import Drains, Publication, application_entry
from ergo_registrar.errors import NoRouteError, ValidationError
from ergo_registrar.routes import ApplicationRoute, ApplicationRouteLayout, Route, Version

LAYOUTS: list[ApplicationRouteLayout] = ["v3.1", "tags", "tags+version"]


def web(**changes: Any) -> ApplicationRoute:
    return msgspec.structs.replace(ApplicationRoute("a@h", "web", 1, 3, 2), **changes)


def published(node: Any = "a@h", routes: Any = (), applications: Any = (), cluster: Any = "c") -> Publication:
    return Publication.of(cluster, "v3.1", node, routes, applications)


def test_the_node_comes_first_then_its_applications() -> None:
    publication = published(routes=[Route("h", 1)], applications=[web(), web(name="db")])
    assert publication.node == "a@h"
    assert publication.node_key == b"services/ergo/cluster/c/routes/nodes/a@h"
    assert list(publication.entries) == [
        b"services/ergo/cluster/c/routes/nodes/a@h",
        b"services/ergo/cluster/c/routes/applications/web/a@h",
        b"services/ergo/cluster/c/routes/applications/db/a@h",
    ]
    values = list(publication.entries.values())
    assert decode_routes(values[0]) == [Route("h", 1)]
    assert [decode_application_route(value) for value in values[1:]] == [web(), web(name="db")]


def test_iterators_do() -> None:
    publication = published(routes=iter([Route("h", 1)]), applications=(route for route in [web()]))
    assert decode_routes(publication.entries[publication.node_key]) == [Route("h", 1)]
    assert len(publication.entries) == 2


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_application_is_written_in_the_layout_asked_for(layout: ApplicationRouteLayout) -> None:
    route = web(tags=("blue",)) if layout == "tags" else web()
    if layout == "tags+version":
        route = web(tags=(), version=Version("web", "1"))
    key, value = application_entry("c", layout, "a@h", route)
    assert key == b"services/ergo/cluster/c/routes/applications/web/a@h"
    assert decode_application_route(value) == route


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"node": ""}, "node"),
        ({"node": "a/b"}, "node"),
        ({"node": "*"}, "node"),
        ({"node": None}, "node"),
        ({"node": b"a@h"}, "node"),
        ({"cluster": "a/b"}, "cluster"),
        ({"routes": [Route("h", 65536)]}, "route.port"),
        ({"routes": [Route("h", True)]}, "route.port"),
        ({"routes": [Route(None, 1)]}, "route.host"),  # type: ignore[arg-type]  # wrong on purpose
        ({"routes": [Route("h", 1, tls=1)]}, "route.tls"),  # type: ignore[arg-type]  # wrong on purpose
        ({"routes": [Route("h", 1, proto_version=None)]}, "route.proto_version"),  # type: ignore[arg-type]  # wrong on purpose
        ({"routes": [("h", 1)]}, "route"),
        ({"routes": None}, "routes"),
        ({"routes": 5}, "routes"),
        ({"routes": Route("h", 1)}, "routes"),
        ({"applications": [web(node="b@h")]}, "application.node"),
        ({"applications": [web(name="")]}, "application.name"),
        ({"applications": [web(name="a/b")]}, "application.name"),
        ({"applications": [web(name=3)]}, "application.name"),
        ({"applications": [web(weight=2**63)]}, "application.weight"),
        ({"applications": [web(weight=1.5)]}, "application.weight"),
        ({"applications": [web(mode="permanent")]}, "application.mode"),
        ({"applications": [web(state=-(2**31) - 1)]}, "application.state"),
        ({"applications": [web(tags=("x",))]}, "application.tags"),
        ({"applications": [web(version=Version("x"))]}, "application.version"),
        ({"applications": [web(), web(weight=2)]}, "applications"),
        ({"applications": ["web"]}, "application"),
        ({"applications": [None]}, "application"),
        ({"applications": None}, "applications"),
        ({"applications": web()}, "applications"),
    ],
)
def test_what_breaks_a_rule_is_named(given: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError) as refused:
        published(**given)
    assert refused.value.field.startswith(field)
    assert str(refused.value).startswith(refused.value.field)


def test_what_etcd_would_not_take_in_one_request_is_refused() -> None:
    tags = tuple(f"{number:0250}" for number in range(3000))
    with pytest.raises(ValidationError, match=r"^application\.tags: must fit, encoded, into 1000000 bytes"):
        application_entry("c", "tags", "a@h", web(tags=tags))
    with pytest.raises(ValidationError, match=r"^routes: must fit, encoded, into 1000000 bytes"):
        published(routes=[Route("h" * 60_000, 1)] * 20)


class TestDraining:
    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("weight", [0, 5, 2**63 - 1])
    def test_puts_the_weight_aside_and_back_again(self, layout: ApplicationRouteLayout, weight: int) -> None:
        drains = Drains("c", layout, "a@h")
        tags = None if layout == "v3.1" else ("gpu",)
        _, value = application_entry("c", layout, "a@h", web(weight=weight, tags=tags))
        drained = drains.drain("web", value)
        assert decode_application_route(drained) == web(weight=-1, tags=tags)
        assert drains.drain("web", drained) == drained  # twice is as good as once
        assert drains.undrain("web", drained) == value
        assert drains.undrain("web", value) == value

    def test_what_was_never_picked_stays_as_it_is(self) -> None:
        drains = Drains("c", "v3.1", "a@h")
        _, value = application_entry("c", "v3.1", "a@h", web(weight=-7))
        assert drains.drain("web", value) == value
        assert drains.undrain("web", value) == value

    def test_what_was_published_meanwhile_is_the_newer_word(self) -> None:
        drains = Drains("c", "v3.1", "a@h")
        old, new = (application_entry("c", "v3.1", "a@h", web(weight=weight))[1] for weight in (3, 8))
        drains.drain("web", old)
        assert drains.undrain("web", new) == new
        assert drains.undrain("web", drains.drain("web", new)) == new

    def test_each_application_has_its_own_weight(self) -> None:
        drains = Drains("c", "v3.1", "a@h")
        one, other = (application_entry("c", "v3.1", "a@h", web(name=name, weight=5))[1] for name in ("web", "db"))
        drained = drains.drain("web", one)
        drains.drain("db", other)
        assert drains.undrain("web", drained) == one

    def test_an_application_that_is_not_there_is_named(self) -> None:
        drains = Drains("c", "v3.1", "a@h")
        for call in (drains.drain, drains.undrain):
            with pytest.raises(NoRouteError, match=r"'a@h' publishes no application 'web' in cluster 'c': register"):
                call("web", None)
