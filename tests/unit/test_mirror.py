"""The mirror, told as stories of a cluster. `tests/property/test_mirror_machine.py` tells all the others."""

import pytest

from ergo_registrar.core.edf import encode_application_route, encode_routes
from ergo_registrar.core.keys import application_key, leaving_key, node_key, routes_prefix
from ergo_registrar.core.mirror import Mirror
from ergo_registrar.core.records import Record
from ergo_registrar.events import (
    ApplicationLoaded,
    ApplicationStarted,
    ApplicationStopped,
    ApplicationStopping,
    ApplicationUpdated,
    Event,
    NodeJoined,
    NodeLeft,
    NodeRecovered,
    NodeSuspected,
)
from ergo_registrar.routes import ApplicationRoute, Route
from tests.property.keyspace import Keyspace

ROUTE = Route("10.0.0.1", 15000)
OTHER = Route("10.0.0.2", 15000)


class Cluster:
    """etcd, and a process that watches it. Each call returns the events it leads to, without their revision."""

    def __init__(self, *, suspect_grace: float = 0.0, own: str | None = None) -> None:
        self.etcd = Keyspace()
        self.mirror = Mirror("c", suspect_grace=suspect_grace)
        self.mirror.own = own
        self.now = 1000.0

    def commit(self, changes: dict[bytes, bytes | None]) -> list[Event]:
        return self.mirror.batch(self.etcd.commit(changes), self.etcd.revision, self.now).events

    def put_node(self, node: str, *routes: Route) -> list[Event]:
        return self.commit(node_entry(node, *routes))

    def put_application(self, route: ApplicationRoute) -> list[Event]:
        return self.commit(application_entry(route))

    def start(self, node: str, *names: str) -> list[Event]:
        entries = node_entry(node, ROUTE)
        for name in names:
            entries |= application_entry(running(node, name))
        return self.commit(entries)

    def lose(self, node: str, *names: str) -> list[Event]:
        """The lease of a node ends. Its applications come first in the revision, as they may."""
        return self.commit({**{application_key("c", name, node): None for name in names}, node_key("c", node): None})

    def say_goodbye(self, node: str) -> list[Event]:
        return self.commit({leaving_key("c", node): b""})

    def resync(self) -> list[Event]:
        return self.mirror.snapshot(self.etcd.listing(routes_prefix("c")), self.etcd.revision, self.now).events

    def wait(self, seconds: float) -> list[Event]:
        self.now += seconds
        return self.mirror.tick(self.now).events


def node_entry(node: str, *routes: Route) -> dict[bytes, bytes | None]:
    return {node_key("c", node): encode_routes(routes)}


def application_entry(route: ApplicationRoute) -> dict[bytes, bytes | None]:
    return {application_key("c", route.name, route.node): encode_application_route(route)}


def running(node: str, name: str, weight: int = 1) -> ApplicationRoute:
    return ApplicationRoute(node, name, weight, mode=1, state=2)


def plain(events: list[Event]) -> list[tuple[str, ...]]:
    """Return each event as its kind and whom it is about."""
    return [
        (type(event).__name__, event.name, event.node)
        if isinstance(event, ApplicationStarted | ApplicationStopped | ApplicationUpdated | ApplicationLoaded)
        else (type(event).__name__, getattr(event, "name", ""))
        for event in events
    ]


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def lenient() -> Cluster:
    """Ten seconds of grace, and a node that runs two applications."""
    cluster = Cluster(suspect_grace=10)
    cluster.start("web1@h", "api", "db")
    return cluster


def test_the_first_snapshot_tells_of_everything_nodes_first(cluster: Cluster) -> None:
    cluster.etcd.commit({**application_entry(running("b@h", "api")), **node_entry("b@h", ROUTE), **node_entry("a@h")})
    assert cluster.resync() == [
        NodeJoined(revision=2, name="a@h", routes=()),
        NodeJoined(revision=2, name="b@h", routes=(ROUTE,)),
        ApplicationStarted(revision=2, route=running("b@h", "api")),
    ]
    assert cluster.mirror.nodes() == ["a@h", "b@h"]
    assert cluster.mirror.revision == 2


def test_a_node_without_routes_reads_as_nil_reads(cluster: Cluster) -> None:
    cluster.commit({node_key("c", "a@h"): encode_routes(None)})
    assert cluster.mirror.routes("a@h") == ()
    assert cluster.mirror.routes("b@h") is None


def test_nodes_with_the_same_routes_share_them_unless_they_are_large(cluster: Cluster) -> None:
    many = [Route(f"10.0.0.{number}", number) for number in range(100)]
    for node in ("a@h", "b@h"):
        cluster.put_node(node, ROUTE)
        cluster.put_node(f"large-{node}", *many)
    assert cluster.mirror.routes("a@h") is cluster.mirror.routes("b@h")
    assert cluster.mirror.routes("large-a@h") == cluster.mirror.routes("large-b@h") == tuple(many)
    assert cluster.mirror.routes("large-a@h") is not cluster.mirror.routes("large-b@h")


def test_the_life_of_an_application(cluster: Cluster) -> None:
    loaded, started, stopping = (ApplicationRoute("a@h", "api", 1, 1, state) for state in (1, 2, 3))
    unnamed = ApplicationRoute("a@h", "api", 1, 1, 9)
    assert cluster.put_application(loaded) == [ApplicationLoaded(revision=2, route=loaded)]
    assert cluster.put_application(started) == [ApplicationStarted(revision=3, route=started)]
    assert cluster.put_application(stopping) == [ApplicationStopping(revision=4, route=stopping)]
    assert cluster.put_application(unnamed) == [ApplicationUpdated(revision=5, route=unnamed, previous=stopping)]
    assert cluster.commit({application_key("c", "api", "a@h"): None}) == [ApplicationStopped(revision=6, route=unnamed)]
    assert cluster.mirror.instances("api").routes == {}
    assert cluster.put_application(unnamed) == [ApplicationUpdated(revision=7, route=unnamed, previous=None)]


def test_an_application_that_changes_its_weight_is_updated(cluster: Cluster) -> None:
    before, after = running("a@h", "api", weight=1), running("a@h", "api", weight=5)
    cluster.put_application(before)
    assert cluster.put_application(after) == [ApplicationUpdated(revision=3, route=after, previous=before)]


def test_a_rewrite_with_the_same_content_says_nothing(cluster: Cluster) -> None:
    cluster.start("a@h", "api")
    assert cluster.start("a@h", "api") == []
    assert cluster.resync() == []


def test_a_node_that_changes_its_routes_is_told_again(cluster: Cluster) -> None:
    cluster.put_node("a@h", ROUTE)
    assert cluster.put_node("a@h", OTHER) == [NodeJoined(revision=3, name="a@h", routes=(OTHER,))]


def test_without_grace_an_expired_lease_takes_the_node_and_then_its_applications(cluster: Cluster) -> None:
    cluster.start("a@h", "db", "api")
    assert plain(cluster.lose("a@h", "db", "api")) == [
        ("NodeLeft", "a@h"),
        ("ApplicationStopped", "api", "a@h"),
        ("ApplicationStopped", "db", "a@h"),
    ]
    assert cluster.mirror.next_deadline(cluster.now) is None


def test_nobody_hears_of_oneself() -> None:
    cluster = Cluster(own="me@h", suspect_grace=10)
    assert cluster.start("me@h", "api") == []
    assert cluster.mirror.nodes() == []
    assert cluster.mirror.routes("me@h") == (ROUTE,)
    assert list(cluster.mirror.instances("api").routes) == ["me@h"]
    assert cluster.mirror.state_events() == []
    assert cluster.lose("me@h", "api") + cluster.wait(10) == []
    assert cluster.mirror.instances("api").routes == {}


def test_what_cannot_be_read_is_skipped_and_counts_as_absent(cluster: Cluster) -> None:
    cluster.start("a@h", "api")
    junk = {node_key("c", "a@h"): b"junk", routes_prefix("c") + b"strange/key": b""}
    records = cluster.etcd.commit(junk)
    step = cluster.mirror.batch(records, cluster.etcd.revision, cluster.now)
    assert plain(step.events) == [("NodeLeft", "a@h")]
    assert [skipped.key for skipped in step.skipped] == list(junk)
    deleted = cluster.etcd.commit(dict.fromkeys(junk))
    assert cluster.mirror.batch(deleted, cluster.etcd.revision, cluster.now).skipped == []


def test_a_route_that_cannot_be_read_and_comes_alone_is_skipped_too(cluster: Cluster) -> None:
    cluster.start("a@h", "api")
    records = cluster.etcd.commit({application_key("c", "api", "a@h"): b"junk"})
    step = cluster.mirror.batch(records, cluster.etcd.revision, cluster.now)
    assert plain(step.events) == [("ApplicationStopped", "api", "a@h")]
    assert [skipped.key for skipped in step.skipped] == [records[0].key]


def test_a_route_of_someone_else_is_skipped_with_the_reason(cluster: Cluster) -> None:
    key = application_key("c", "api", "a@h")
    records = [Record(key, encode_application_route(running("b@h", "api")), 2, 2)]
    step = cluster.mirror.snapshot(records, 2, cluster.now)
    assert step.events == []
    assert [(skipped.key, "'b@h'" in skipped.reason) for skipped in step.skipped] == [(key, True)]


def test_a_node_that_vanishes_is_suspected_and_stays_resolvable(lenient: Cluster) -> None:
    assert plain(lenient.lose("web1@h", "api", "db")) == [("NodeSuspected", "web1@h")]
    assert lenient.mirror.nodes() == ["web1@h"]
    assert lenient.mirror.suspected("web1@h")
    assert list(lenient.mirror.instances("api").routes) == ["web1@h"]
    assert "web1@h" in lenient.mirror.instances("api").suspects
    assert [type(event) for event in lenient.mirror.state_events()] == [
        NodeJoined,
        NodeSuspected,
        ApplicationStarted,
        ApplicationStarted,
    ]


def test_when_the_grace_is_over_the_suspect_is_gone(lenient: Cluster) -> None:
    lenient.lose("web1@h", "api", "db")
    assert lenient.mirror.next_deadline(lenient.now) == lenient.now + 10
    assert lenient.wait(9.9) == []
    assert lenient.wait(0.1) == [
        NodeLeft(name="web1@h"),
        ApplicationStopped(route=running("web1@h", "api")),
        ApplicationStopped(route=running("web1@h", "db")),
    ]
    assert lenient.mirror.next_deadline(lenient.now) is None


def test_a_go_node_that_comes_back_puts_itself_first_and_its_applications_one_by_one(lenient: Cluster) -> None:
    lenient.lose("web1@h", "api", "db")
    lenient.wait(4)
    assert plain(lenient.put_node("web1@h", ROUTE)) == [("NodeRecovered", "web1@h")]
    assert not lenient.mirror.suspected("web1@h")
    assert "web1@h" in lenient.mirror.instances("api").suspects
    assert lenient.put_application(running("web1@h", "api")) == []
    assert "web1@h" not in lenient.mirror.instances("api").suspects
    assert plain(lenient.wait(6)) == [("ApplicationStopped", "db", "web1@h")]


def test_a_node_that_comes_back_elsewhere_says_where(lenient: Cluster) -> None:
    lenient.lose("web1@h", "api", "db")
    assert lenient.put_node("web1@h", OTHER) == [
        NodeRecovered(revision=4, name="web1@h"),
        NodeJoined(revision=4, name="web1@h", routes=(OTHER,)),
    ]


def test_a_node_that_comes_and_goes_cannot_keep_an_application_that_does_not_come_back(lenient: Cluster) -> None:
    lenient.lose("web1@h", "api", "db")
    lenient.wait(5)
    lenient.start("web1@h", "api")
    lenient.lose("web1@h", "api")
    assert plain(lenient.wait(5)) == [("ApplicationStopped", "db", "web1@h")]
    assert plain(lenient.wait(5)) == [("NodeLeft", "web1@h"), ("ApplicationStopped", "api", "web1@h")]


def test_the_owner_of_an_application_is_believed(lenient: Cluster) -> None:
    assert plain(lenient.commit({application_key("c", "api", "web1@h"): None})) == [
        ("ApplicationStopped", "api", "web1@h")
    ]


def test_a_node_that_said_goodbye_is_believed(lenient: Cluster) -> None:
    assert lenient.say_goodbye("web1@h") == []
    assert lenient.commit({leaving_key("c", "web1@h"): None}) == []
    assert plain(lenient.lose("web1@h", "api", "db")) == [
        ("NodeLeft", "web1@h"),
        ("ApplicationStopped", "api", "web1@h"),
        ("ApplicationStopped", "db", "web1@h"),
    ]


def test_a_goodbye_in_the_same_revision_is_heard_first(lenient: Cluster) -> None:
    assert plain(lenient.commit({node_key("c", "web1@h"): None, leaving_key("c", "web1@h"): b""})) == [
        ("NodeLeft", "web1@h")
    ]


def test_a_late_goodbye_ends_the_suspicion(lenient: Cluster) -> None:
    lenient.lose("web1@h", "api", "db")
    assert plain(lenient.say_goodbye("web1@h")) == [
        ("NodeLeft", "web1@h"),
        ("ApplicationStopped", "api", "web1@h"),
        ("ApplicationStopped", "db", "web1@h"),
    ]


def test_the_goodbye_of_an_earlier_life_does_not_count(lenient: Cluster) -> None:
    lenient.say_goodbye("web1@h")
    lenient.lose("web1@h", "api", "db")
    lenient.start("web1@h", "api")
    lenient.resync()  # the marker still stands
    assert plain(lenient.lose("web1@h", "api")) == [("NodeSuspected", "web1@h")]


def test_the_grace_stands_still_without_a_session(lenient: Cluster) -> None:
    lenient.lose("web1@h", "api", "db")
    lenient.wait(4)
    lenient.mirror.pause(lenient.now)
    lenient.start("web2@h")
    lenient.wait(50)
    lenient.lose("web2@h")
    assert lenient.mirror.next_deadline(lenient.now) is None
    assert lenient.wait(50) == []
    lenient.mirror.pause(lenient.now)  # already is
    lenient.mirror.resume(lenient.now)
    lenient.mirror.resume(lenient.now)  # already has
    assert lenient.mirror.next_deadline(lenient.now) == lenient.now + 6
    assert plain(lenient.wait(6))[0] == ("NodeLeft", "web1@h")
    assert lenient.wait(3.9) == []
    assert plain(lenient.wait(0.1)) == [("NodeLeft", "web2@h")]


def test_what_vanished_between_two_listings_is_suspected_too(lenient: Cluster) -> None:
    lenient.etcd.commit(dict.fromkeys(lenient.etcd.records))
    assert plain(lenient.resync()) == [("NodeSuspected", "web1@h")]
    assert lenient.resync() == []


def test_a_goodbye_found_in_the_listing_counts(lenient: Cluster) -> None:
    lenient.etcd.commit(dict.fromkeys(lenient.etcd.records))
    lenient.etcd.commit({leaving_key("c", "web1@h"): b""})
    assert plain(lenient.resync())[0] == ("NodeLeft", "web1@h")


def test_a_node_that_died_and_came_back_unseen_gets_time_to_put_its_applications_again(lenient: Cluster) -> None:
    lenient.etcd.commit(dict.fromkeys(lenient.etcd.records))
    lenient.etcd.commit(node_entry("web1@h", ROUTE))
    assert lenient.resync() == []
    assert "web1@h" in lenient.mirror.instances("api").suspects
    assert lenient.put_application(running("web1@h", "api")) == []
    assert plain(lenient.wait(10)) == [("ApplicationStopped", "db", "web1@h")]


def test_one_that_left_and_came_back_unseen_does_not(lenient: Cluster) -> None:
    lenient.lose("web1@h", "api")
    lenient.start("web1@h", "db")  # in this life, api is missing
    lenient.say_goodbye("web1@h")
    lenient.etcd.commit({node_key("c", "web1@h"): None, application_key("c", "db", "web1@h"): None})
    lenient.etcd.commit(node_entry("web1@h", ROUTE))
    assert plain(lenient.resync()) == [
        ("ApplicationStopped", "api", "web1@h"),
        ("ApplicationStopped", "db", "web1@h"),
    ]


def test_without_grace_a_listing_is_the_whole_truth(cluster: Cluster) -> None:
    cluster.start("a@h", "api")
    cluster.start("b@h", "api")
    cluster.etcd.commit(dict.fromkeys([node_key("c", "a@h"), application_key("c", "api", "a@h")]))
    cluster.etcd.commit(node_entry("a@h", ROUTE))
    assert plain(cluster.resync()) == [("ApplicationStopped", "api", "a@h")]
    assert list(cluster.mirror.instances("api").routes) == ["b@h"]


def test_one_revision_is_told_in_the_order_of_names(cluster: Cluster) -> None:
    entries = {
        **application_entry(running("b@h", "web")),
        **node_entry("b@h"),
        **application_entry(running("a@h", "web")),
    }
    assert plain(cluster.commit({**entries, **application_entry(running("b@h", "api")), **node_entry("a@h")})) == [
        ("NodeJoined", "a@h"),
        ("NodeJoined", "b@h"),
        ("ApplicationStarted", "api", "b@h"),
        ("ApplicationStarted", "web", "a@h"),
        ("ApplicationStarted", "web", "b@h"),
    ]


def test_a_goodbye_holds_for_the_rest_of_that_life(lenient: Cluster) -> None:
    lenient.say_goodbye("web1@h")
    lenient.put_node("web1@h", OTHER)
    assert plain(lenient.lose("web1@h"))[0] == ("NodeLeft", "web1@h")


def test_a_listing_does_not_cut_the_grace_of_an_application_short(lenient: Cluster) -> None:
    lenient.lose("web1@h", "api", "db")
    lenient.start("web1@h", "api")
    assert lenient.resync() == []
    assert "web1@h" in lenient.mirror.instances("db").suspects


def test_an_observer_that_becomes_a_node_tells_that_an_earlier_holder_of_the_name_left(lenient: Cluster) -> None:
    lenient.lose("web1@h", "api", "db")
    assert lenient.mirror.become("fresh@h").events == []
    assert plain(lenient.mirror.become("web1@h").events) == [
        ("NodeLeft", "web1@h"),
        ("ApplicationStopped", "api", "web1@h"),
        ("ApplicationStopped", "db", "web1@h"),
    ]
    assert lenient.mirror.become("web1@h").events == []
    assert lenient.start("web1@h", "api") == []
    assert lenient.mirror.become(None).events == []
    assert lenient.mirror.instances("api").routes == {}
    assert plain(lenient.resync()) == [("NodeJoined", "web1@h"), ("ApplicationStarted", "api", "web1@h")]
