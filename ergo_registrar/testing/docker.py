"""An etcd in Docker, where there is no etcd program: by testcontainers, if it is installed and an engine answers.

The tests of this package have no engine. What this asks of one was looked at with a stand-in that ran a local etcd.
"""

import contextlib
from collections.abc import Iterator

from ergo_registrar.errors import UnsupportedError

IMAGE = "gcr.io/etcd-development/etcd:v3.6.16"
"""The same as in compose.yaml."""

_PORT = 2379
_SETTINGS = {  # the image starts etcd, and etcd reads its flags from ETCD_*
    "ETCD_DATA_DIR": "/etcd-data",
    "ETCD_LISTEN_CLIENT_URLS": f"http://0.0.0.0:{_PORT}",
    "ETCD_ADVERTISE_CLIENT_URLS": f"http://0.0.0.0:{_PORT}",
    "ETCD_UNSAFE_NO_FSYNC": "true",
}


@contextlib.contextmanager
def etcd_in_docker() -> Iterator[str]:
    """Run an etcd for as long as the block lasts; its endpoint, HOST:PORT. `UnsupportedError` says what is missing."""
    try:
        from docker.errors import DockerException
        from testcontainers.core.container import DockerContainer
        from testcontainers.core.docker_client import DockerClient
        from testcontainers.core.wait_strategies import HttpWaitStrategy
    except ImportError as error:
        raise UnsupportedError("testcontainers 4.13 or later is not installed") from error
    try:
        DockerClient().client.ping()
    except DockerException as error:
        raise UnsupportedError(f"no Docker engine answers: {error}") from error
    container = DockerContainer(IMAGE).with_exposed_ports(_PORT).with_envs(**_SETTINGS)
    container.waiting_for(HttpWaitStrategy(_PORT, "/health").for_response_predicate(lambda said: '"true"' in said))
    with container:
        yield f"{container.get_container_host_ip()}:{container.get_exposed_port(_PORT)}"
