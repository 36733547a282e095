"""What the docs promise of `compose.yaml`. No Docker is needed here; the seed's port for tests is 12379."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from ergo_registrar import Options

ROOT = Path(__file__).parents[2]
SERVICES: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
MEMBERS = ["etcd1", "etcd2", "etcd3"]
NODES = {"greeter1": "service.py", "greeter2": "service.py", "client": "client.py"}


def started(*profiles: str) -> list[str]:
    return [name for name, service in SERVICES.items() if set(service.get("profiles", profiles)) <= set(profiles)]


def test_without_a_profile_one_etcd_starts_on_the_port_for_tests() -> None:
    assert started() == ["etcd"]
    assert SERVICES["etcd"]["ports"] == ["127.0.0.1:12379:2379"]


def test_the_profile_cluster_adds_three_members() -> None:
    assert started("cluster") == ["etcd", *MEMBERS]
    assert [SERVICES[member]["ports"] for member in MEMBERS] == [
        ["127.0.0.1:12381:2379"],
        ["127.0.0.1:12382:2379"],
        ["127.0.0.1:12383:2379"],
    ]


def test_the_members_know_each_other() -> None:
    peers = {f"{member}=http://{member}:2380" for member in MEMBERS}
    for member in MEMBERS:
        environment = SERVICES[member]["environment"]
        assert environment["ETCD_NAME"] == member
        assert environment["ETCD_INITIAL_ADVERTISE_PEER_URLS"] == f"http://{member}:2380"
        assert set(environment["ETCD_INITIAL_CLUSTER"].split(",")) == peers


@pytest.mark.parametrize("name", ["etcd", *MEMBERS])
def test_every_etcd_says_when_it_is_healthy_and_where_it_is(name: str) -> None:
    service = SERVICES[name]
    assert service["healthcheck"]["test"] == ["CMD", "etcdctl", "--endpoints=localhost:2379", "endpoint", "health"]
    (port,) = service["ports"]
    assert service["environment"]["ETCD_ADVERTISE_CLIENT_URLS"] == f"http://localhost:{port.split(':')[1]}"


def test_the_images_are_one_pinned_version() -> None:
    (image,) = {SERVICES[name]["image"] for name in ["etcd", *MEMBERS]}
    assert image.rpartition(":")[2].startswith("v3.")


def test_the_profile_example_adds_two_services_and_a_client_on_the_one_etcd() -> None:
    assert started("example") == ["etcd", *NODES]
    for name, program in NODES.items():
        node = SERVICES[name]
        assert node["command"] == ["python", program, f"{name}@{name}"]  # reached under the service's name
        assert (ROOT / "docs/examples" / program).exists()
        assert node["depends_on"] == {"etcd": {"condition": "service_healthy"}}


def test_the_example_runs_with_the_options_of_the_one_without_docker() -> None:
    for name in NODES:
        environment = SERVICES[name]["environment"]
        assert environment["ERGO_REGISTRAR_ENDPOINTS"] == "etcd:2379"
        assert Options.from_env(environment).lease_ttl == 3
        for variable in environment.keys() - {"ERGO_REGISTRAR_ENDPOINTS"}:
            assert f'"{variable}": "{environment[variable]}"' in (ROOT / "docs/examples/run.py").read_text()


def test_what_the_example_s_image_is_made_of_exists() -> None:
    copied = re.findall(r"^COPY (.*) \S+$", SERVICES["client"]["build"]["dockerfile_inline"], re.MULTILINE)
    assert copied
    for path in " ".join(copied).split():
        assert (ROOT / path).exists(), path
