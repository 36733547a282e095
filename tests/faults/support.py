"""What the fault stories share: the proof that others missed nobody, etcd's login, and the state as events tell it."""

import contextlib
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

from aetcd import rpc

from ergo_registrar import Options, Registrar
from ergo_registrar.etcd.connection import Connection
from ergo_registrar.etcd.server import Member
from ergo_registrar.stats import Stats
from tests.integration.support import Raw, etcdctl, eventually, short_options, waiting
from tests.property.folding import State, fold_all

LOAD = 2.0  # seconds that a loaded machine may add to what is promised

CLUSTER = "c"  # the cluster that the user of `demand_login` may enter
SECRET = "s3cr3t-p4ssw0rd"
ROOT = f"root:{SECRET}"
ROLE = (  # what docs/reference/keys.md says that members need, for nodes a@h and b@h
    ("readwrite", f"services/ergo/cluster/{CLUSTER}/routes/"),
    ("read", f"services/ergo/config/{CLUSTER}/a@h/"),
    ("read", f"services/ergo/config/{CLUSTER}/b@h/"),
    ("read", f"services/ergo/cluster/{CLUSTER}/config/a@h/"),
    ("read", f"services/ergo/cluster/{CLUSTER}/config/b@h/"),
    ("read", f"services/ergo/cluster/{CLUSTER}/config/*/"),
    ("read", "services/ergo/config/global/"),
)


async def hold(raw: Raw, options: Options, node: str = "a@h") -> tuple[int, int]:
    """Return the lease and the create revision of a node's key: as long as both stay, others see it live on."""
    key = await raw.get(f"services/ergo/cluster/{options.cluster}/routes/nodes/{node}")
    assert key, f"{node} is not there"
    return key.lease, key.created


def known(registrar: Registrar) -> State:
    """Return what a registrar knows of others and of its configuration."""
    return fold_all(State(), waiting(registrar.subscribe(replay=True)))


@contextlib.asynccontextmanager
async def connected(options: Options) -> AsyncIterator[Connection]:
    """A connection to etcd, without a registrar on it."""
    connection = Connection(options, Stats())
    try:
        await connection.look(timeout=5)
        yield connection
    finally:
        await connection.close()


# Login


async def demand_login(endpoint: str) -> None:
    """Switch etcd's authentication on, with the users root, and web, who may do no more than is documented."""
    for command in (
        f"user add {ROOT}",
        "user grant-role root root",
        "role add member",
        *(f"role grant-permission member --prefix {access} {prefix}" for access, prefix in ROLE),
        f"user add web:{SECRET}",
        "user grant-role web member",
        "auth enable",
    ):
        await etcdctl(endpoint, *command.split())


def web_options(endpoint: str, **overrides: Any) -> Options:
    """Options of the user that `demand_login` made."""
    return short_options(endpoint, cluster=CLUSTER, username="web", password=SECRET, **overrides)


async def forget_tokens(member: Member) -> None:
    """Restart a member in good order, behind a write. Else it knows again, from its log, the tokens it gave last."""
    async with Raw(member.endpoint, "root", SECRET) as root:
        await root.put("of/somebody/else", "x")
    pid = member.pid
    assert pid
    os.kill(pid, signal.SIGTERM)
    await eventually(lambda: member.returncode is not None)
    await member.restart()


async def set_password(root: Raw, password: str) -> None:
    """Set the password of web. Whatever it is, every token that web has is void from then on."""
    request = rpc.AuthUserChangePasswordRequest(name="web", password=password)
    await root._client.auth_stub.UserChangePassword(request, metadata=root._client.metadata, timeout=10)


async def logins(raw: Raw) -> int:
    """Return how often anyone asked this member for a token since it started, granted or refused."""
    asked = ("grpc_server_handled_total{", 'grpc_method="Authenticate"')
    return int(sum(count for name, count in (await raw.metrics()).items() if all(part in name for part in asked)))
