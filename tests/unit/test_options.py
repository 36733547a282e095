"""Options are checked once, name what is wrong, and keep their secret."""

import contextlib
import dataclasses
import math
import pickle
from typing import Any

import pytest

from ergo_registrar import TLS, Options, ValidationError

SECRET = "s3cr3t-p4ssw0rd"
SECONDS = [
    "dial_timeout",
    "request_timeout",
    "keep_alive",
    "lease_ttl",
    "suspect_grace",
    "claim_timeout",
    "close_timeout",
]


def test_the_defaults_are_those_of_the_reference() -> None:
    options = Options()
    assert options.cluster == "default"
    assert options.endpoints == ("localhost:2379",)
    assert (options.username, options.password, options.tls, options.insecure_skip_verify) == (None, None, None, False)
    assert (options.dial_timeout, options.request_timeout, options.keep_alive, options.lease_ttl) == (10, 10, 10, 10)
    assert (options.suspect_grace, options.claim_timeout, options.close_timeout) == (0, 0, 5)
    assert options.application_route_layout == "v3.1"
    assert not options.secure


def test_they_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Options().cluster = "other"  # type: ignore[misc]  # wrong on purpose
    given = ["a:1"]
    options = Options(endpoints=given)  # type: ignore[arg-type]  # wrong on purpose
    given.append("b:2")
    assert options.endpoints == ("a:1",)
    assert hash(options) == hash(Options(endpoints=("a:1",)))
    assert dataclasses.replace(options, cluster="c").cluster == "c"


def test_they_are_given_by_name() -> None:
    with pytest.raises(TypeError):
        Options("default")  # type: ignore[call-arg]  # wrong on purpose


@pytest.mark.parametrize("cluster", ["", "a/b", "a\n", "\0", "é" * 128, None, 7, b"c"])
def test_a_cluster_is_a_name(cluster: Any) -> None:
    with pytest.raises(ValidationError, match=r"^cluster: "):
        Options(cluster=cluster)


@pytest.mark.parametrize(
    "endpoint",
    [
        "h:1",
        "h:65535",
        "127.0.0.1:2379",
        "[::1]:2379",
        "https://h:1",
        "http://h:1",
        "etcd-0.etcd.svc.cluster.local:2379",
    ],
)
def test_an_endpoint_is_a_host_and_a_port(endpoint: str) -> None:
    assert Options(endpoints=(endpoint,)).endpoints == (endpoint,)


@pytest.mark.parametrize(
    "endpoints",
    [
        (),
        [],
        None,
        "localhost:2379",
        {"localhost:2379"},
        ("localhost",),
        (":2379",),
        ("h:",),
        ("h:0",),
        ("h:65536",),
        ("h:-1",),
        ("h:1x",),
        ("h:²",),
        ("h:\u0661",),  # an Arabic digit
        ("h:" + "1" * 5000,),  # more digits than Python reads
        ("h :1",),
        ("h\n:1",),
        ("https://h:1/path",),
        ("ftp://h:1",),
        ("h:1,i:1",),
        (2379,),
        ("h:1", None),
        ("https://h:1", "i:1"),
    ],
)
def test_what_is_no_endpoint_is_refused(endpoints: Any) -> None:
    with pytest.raises(ValidationError, match=r"^endpoints: "):
        Options(endpoints=endpoints)


@pytest.mark.parametrize("field", SECONDS)
@pytest.mark.parametrize("value", [-1, -0.001, math.nan, math.inf, -math.inf, 1e30, True, None, "5", 10**400])
def test_seconds_are_a_number_within_bounds(field: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=rf"^{field}: ") as refused:
        Options(**{field: value})
    assert refused.value.field == field


@pytest.mark.parametrize("field", ["dial_timeout", "request_timeout", "close_timeout", "lease_ttl", "keep_alive"])
def test_some_may_not_be_zero(field: str) -> None:
    given: dict[str, Any] = {field: 0}
    with pytest.raises(ValidationError, match=rf"^{field}: "):
        Options(**given)


@pytest.mark.parametrize("field", ["suspect_grace", "claim_timeout"])
def test_zero_switches_others_off(field: str) -> None:
    given: dict[str, Any] = {field: 0}
    assert getattr(Options(**given), field) == 0


def test_a_lease_has_whole_seconds() -> None:
    assert Options(lease_ttl=2.0).lease_ttl == 2
    with pytest.raises(ValidationError, match=r"^lease_ttl: must be whole seconds"):
        Options(lease_ttl=2.5)


def test_pings_keep_the_distance_that_etcd_asks_for() -> None:
    assert Options(keep_alive=5).keep_alive == 5
    with pytest.raises(ValidationError, match=r"^keep_alive: must be at least 5 seconds"):
        Options(keep_alive=4.9)


@pytest.mark.parametrize("layout", ["v3.1", "tags", "tags+version"])
def test_a_layout_is_one_of_three(layout: Any) -> None:
    assert Options(application_route_layout=layout).application_route_layout == layout


@pytest.mark.parametrize("layout", ["", "v3", None, 1, ["v3.1"]])
def test_another_layout_is_refused(layout: Any) -> None:
    with pytest.raises(ValidationError, match=r"^application_route_layout: must be one of 'v3\.1', 'tags'"):
        Options(application_route_layout=layout)


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"username": "web"}, "password"),
        ({"password": SECRET}, "username"),
        ({"username": "", "password": SECRET}, "username"),
        ({"username": 7, "password": SECRET}, "username"),
        ({"username": "web", "password": 7}, "password"),
        ({"username": "web", "password": SECRET.encode()}, "password"),
    ],
)
def test_a_login_is_a_name_and_a_password(given: dict[str, Any], field: str) -> None:
    with pytest.raises(ValidationError, match=rf"^{field}: ") as refused:
        Options(**given)
    assert SECRET not in f"{refused.value} {refused.value!r} {vars(refused.value)}"


def test_the_password_is_shown_nowhere() -> None:
    options = Options(username="web", password=SECRET)
    assert SECRET not in repr(options)
    assert SECRET not in str(options)
    assert SECRET not in f"{options!a}"
    assert options.password == SECRET
    assert pickle.loads(pickle.dumps(options)) == options


class TestTLS:
    def test_is_switched_on_by_any_of_three(self) -> None:
        assert Options(tls=TLS()).secure
        with pytest.warns(UserWarning, match="whoever answers first is trusted"):
            assert Options(insecure_skip_verify=True).secure
        assert Options(endpoints=("https://h:1",)).secure
        assert not Options(endpoints=("http://h:1",)).secure

    @pytest.mark.parametrize(
        ("given", "field"),
        [
            ({"cert": "c"}, "tls.key"),
            ({"key": "k"}, "tls.cert"),
            ({"ca": 7}, "tls.ca"),
            ({"ca": b"ca.pem"}, "tls.ca"),
            ({"cert": 7, "key": "k"}, "tls.cert"),
            ({"server_name": ""}, "tls.server_name"),
            ({"server_name": 7}, "tls.server_name"),
        ],
    )
    def test_names_what_is_wrong(self, given: dict[str, Any], field: str) -> None:
        with pytest.raises(ValidationError) as refused:
            TLS(**given)
        assert refused.value.field == field

    @pytest.mark.parametrize("given", [{"tls": True}, {"tls": "ca.pem"}, {"insecure_skip_verify": 1}])
    def test_is_not_any_other_thing(self, given: dict[str, Any]) -> None:
        with pytest.raises(ValidationError, match=rf"^{next(iter(given))}: "):
            Options(**given)


class TestFromEnv:
    def test_reads_every_field(self) -> None:
        environ = {
            "ERGO_REGISTRAR_CLUSTER": "production",
            "ERGO_REGISTRAR_ENDPOINTS": "a:1, b:2",
            "ERGO_REGISTRAR_USERNAME": "web",
            "ERGO_REGISTRAR_PASSWORD": SECRET,
            "ERGO_REGISTRAR_INSECURE_SKIP_VERIFY": "no",
            "ERGO_REGISTRAR_DIAL_TIMEOUT": "1.5",
            "ERGO_REGISTRAR_REQUEST_TIMEOUT": "2",
            "ERGO_REGISTRAR_KEEP_ALIVE": "30",
            "ERGO_REGISTRAR_LEASE_TTL": "20",
            "ERGO_REGISTRAR_SUSPECT_GRACE": "3",
            "ERGO_REGISTRAR_CLAIM_TIMEOUT": "4",
            "ERGO_REGISTRAR_CLOSE_TIMEOUT": "5",
            "ERGO_REGISTRAR_APPLICATION_ROUTE_LAYOUT": "tags",
            "ERGO_REGISTRAR_TLS_CA": "/ca.pem",
            "ERGO_REGISTRAR_TLS_CERT": "/cert.pem",
            "ERGO_REGISTRAR_TLS_KEY": "/key.pem",
            "ERGO_REGISTRAR_TLS_SERVER_NAME": "etcd",
        }
        assert Options.from_env(environ) == Options(
            cluster="production",
            endpoints=("a:1", "b:2"),
            username="web",
            password=SECRET,
            dial_timeout=1.5,
            request_timeout=2,
            keep_alive=30,
            lease_ttl=20,
            suspect_grace=3,
            claim_timeout=4,
            close_timeout=5,
            application_route_layout="tags",
            tls=TLS(ca="/ca.pem", cert="/cert.pem", key="/key.pem", server_name="etcd"),
        )
        read = {variable.removeprefix("ERGO_REGISTRAR_").lower() for variable in environ}
        fields = {field.name for field in dataclasses.fields(Options)} - {"tls"}
        assert read == fields | {f"tls_{field.name}" for field in dataclasses.fields(TLS)}

    def test_without_any_is_the_default(self) -> None:
        assert Options.from_env({"PATH": "/bin", "ERGO_REGISTRAR_CLUSTER": ""}) == Options()

    def test_reads_the_process_s_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("ERGO_REGISTRAR_CLUSTER", "from-the-process")
        assert Options.from_env().cluster == "from-the-process"

    @pytest.mark.parametrize("variable", ["ERGO_REGISTRAR_ETCD", "ERGO_REGISTRAR_TEST_ETCD"])
    def test_leaves_this_package_s_other_variables_alone(self, variable: str) -> None:
        assert Options.from_env({variable: "/usr/bin/etcd"}) == Options()

    def test_gives_way_to_what_the_caller_says(self) -> None:
        environ = {"ERGO_REGISTRAR_CLUSTER": "a", "ERGO_REGISTRAR_TLS_CA": "/ca.pem"}
        options = Options.from_env(environ, cluster="b", tls=None)
        assert (options.cluster, options.tls) == ("b", None)

    @pytest.mark.parametrize(
        ("text", "value"), [("1", True), ("TRUE", True), ("yes", True), ("0", False), ("No", False)]
    )
    def test_reads_yes_and_no(self, text: str, value: bool) -> None:
        with pytest.warns(UserWarning, match="insecure_skip_verify") if value else contextlib.nullcontext():
            options = Options.from_env({"ERGO_REGISTRAR_INSECURE_SKIP_VERIFY": text})
        assert options.insecure_skip_verify is value

    @pytest.mark.parametrize(
        ("variable", "text"),
        [
            ("ERGO_REGISTRAR_LEASE_TTL", "ten"),
            ("ERGO_REGISTRAR_LEASE_TTL", "10s"),
            ("ERGO_REGISTRAR_INSECURE_SKIP_VERIFY", "maybe"),
            ("ERGO_REGISTRAR_ENDPOINT", "a:1"),
            ("ERGO_REGISTRAR_TLS", "yes"),
            ("ERGO_REGISTRAR_TLS_PASSWORD", "x"),
            ("ERGO_REGISTRAR_", "x"),
        ],
    )
    def test_names_a_variable_that_is_wrong(self, variable: str, text: str) -> None:
        with pytest.raises(ValidationError) as refused:
            Options.from_env({variable: text})
        assert refused.value.field == variable
        assert str(refused.value).startswith(f"{variable}: ")

    @pytest.mark.parametrize("text", ["-1", "nan", "inf", "0"])
    def test_checks_what_it_read(self, text: str) -> None:
        with pytest.raises(ValidationError, match=r"(?i)lease_ttl"):
            Options.from_env({"ERGO_REGISTRAR_LEASE_TTL": text})

    @pytest.mark.parametrize("variable", ["ERGO_REGISTRAR_PASSWD", "ERGO_REGISTRAR_PASS_WORD"])
    def test_tells_no_secret_that_came_under_a_wrong_name(self, variable: str) -> None:
        with pytest.raises(ValidationError) as refused:
            Options.from_env({variable: SECRET})
        assert SECRET not in f"{refused.value} {refused.value!r} {vars(refused.value)}"
