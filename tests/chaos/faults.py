"""What each step of a story does: an async context manager that breaks something, and mends it when it ends."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from tests.chaos.plan import Step
from tests.chaos.process import GoneError
from tests.chaos.stage import TTL, Stage
from tests.chaos.wire import CLUSTER, ROUTES, application_key, node_key, weight_of, write_application, write_routes

_SAFE = 60  # seconds: the lease of a foreign key that must not end by itself
_SEEN = 0.1  # seconds in which most have seen what came
_CHURN = 20  # writes while somebody is away


async def play(stage: Stage, step: Step) -> None:
    """Wait until it is time, break, hold, and mend."""
    await asyncio.sleep(step.at)
    stage.begun += 1
    stage.active.append(step)
    stage.counts[f"step {step.fault}"] += 1
    try:
        async with asynccontextmanager(_FAULTS[step.fault])(stage, step):
            await asyncio.sleep(step.hold)
    except GoneError:
        stage.counts["steps too late"] += 1  # whom it was about had ended
    finally:
        stage.active.remove(step)


async def sweep(stage: Stage) -> None:
    """Take away what foreign writes left where a registrar does not: under applications that nobody runs."""
    for key, written in list(stage.garbled.items()):
        application, node = key.decode().removeprefix(f"{ROUTES}applications/").split("/")
        registrar = stage.registrars[node]
        kv = await stage.raw.get(key)
        if kv is not None and kv.value == written and application not in registrar.applications:
            stage.history.let_go.add(key)
            await stage.raw.delete_if(key, kv.mod_revision)
    stage.garbled.clear()


Fault = AsyncIterator[None]  # yields once: broken before, mended after


# The network


async def _network(stage: Stage, step: Step) -> Fault:
    ways = stage.ways(step.target, step.details["member"])
    for way in ways:
        match step.fault:
            case "cut":
                await way.cut()
            case "refuse":
                await way.refuse()
            case "black_hole":
                way.black_hole()
            case "delay":
                way.delay(step.details["seconds"])
            case "throttle":
                way.throttle(step.details["rate"])
    yield
    await stage.heal(step.target, ways)


# Processes


async def _kill(stage: Stage, step: Step) -> Fault:
    await stage.kill(stage.living(step.target))
    yield
    await stage.start(step.target)


async def _leave(stage: Stage, step: Step) -> Fault:
    await stage.leave(stage.living(step.target))
    yield
    await stage.start(step.target)


async def _stop(stage: Stage, step: Step) -> Fault:
    registrar = stage.living(step.target)
    registrar.stop()
    yield
    registrar.go_on()


async def _block(stage: Stage, step: Step) -> Fault:
    await stage.living(step.target).ask("block", seconds=step.hold)
    yield


# etcd's members


async def _member(stage: Stage, step: Step) -> Fault:
    if step.fault == "lose_majority":
        members = [await stage.member("leader"), await stage.member("follower")]
    else:
        members = [await stage.member(step.target)]
    paused = step.fault == "pause_member" or step.details.get("how") == "pause"
    await asyncio.gather(*(member.pause() if paused else member.kill() for member in members))
    if step.fault == "forget_tokens":
        await members[0].restart()
    yield
    for member in members:
        if paused:
            member.resume()
        elif member.returncode is not None:
            await member.restart(wait=False)
    await stage.etcd.ready()
    stage.members_back = time.monotonic()


# Leases and revisions


async def _revoke(stage: Stage, step: Step) -> Fault:
    lease = await stage.lease_of(node_key(step.target))
    if lease and lease not in stage.history.foreign:
        await stage.raw.revoke(lease)
    yield


async def _compact(stage: Stage, step: Step) -> Fault:
    """Cut a node off, let others go and values change, and let etcd forget it, before the node is back."""
    async with _crowd(stage, 3):
        await asyncio.sleep(_SEEN)
        for way in stage.ways(step.target):
            await way.refuse()
    for number in range(_CHURN):
        await stage.raw.put(f"services/ergo/config/global/churn{number % 3}".encode(), f"int:{number}".encode())
    revision, _ = await stage.raw.everything()
    await stage.caught_up()  # what the checker has not heard must not be forgotten
    await stage.raw.compact(revision)
    yield
    await stage.heal(step.target, stage.ways(step.target))


# Logins


async def _change_password(stage: Stage, step: Step) -> Fault:
    await stage.change_password(step.target, right=False)
    yield
    await stage.change_password(step.target, right=True)
    stage.refused[step.target] = time.monotonic()


async def _forbid(stage: Stage, step: Step) -> Fault:
    permissions = stage.permissions(step.target)
    prefix, write = permissions[0] if step.details["prefix"] == "routes" else permissions[-1]
    stage.changed_logins.add(step.target)
    await stage.raw.forbid(step.target, prefix)
    yield
    await stage.raw.permit(step.target, prefix, write)


# Foreign writes


async def _delete(stage: Stage, key: bytes) -> None:
    kv = await stage.raw.get(key)
    if kv is not None and kv.lease and kv.lease not in stage.history.foreign:
        await stage.raw.delete_if(key, kv.mod_revision)


async def _delete_node(stage: Stage, step: Step) -> Fault:
    await _delete(stage, node_key(step.target))
    yield


async def _delete_application(stage: Stage, step: Step) -> Fault:
    await _delete(stage, application_key(step.details["application"], step.target))
    yield


async def _lease_for(stage: Stage, step: Step, key: bytes) -> int:
    match step.details["lease"]:
        case "own":
            return await stage.lease_of(key)
        case "foreign":
            return await stage.grant(_SAFE)
    return 0


async def _garble_node(stage: Stage, step: Step) -> Fault:
    """Write over a node's key: with bytes, or with what it says already; under its own lease, or none, or another."""
    key = node_key(step.target)
    lease = await _lease_for(stage, step, key)
    kv = await stage.raw.get(key)
    right = kv.value if kv is not None else b""
    written = right if step.details["hex"] is None else bytes.fromhex(step.details["hex"])
    if step.details["lease"] != "own":  # else it goes when that lease does, which may be a thief's
        stage.history.let_go.discard(key)
    await stage.raw.put(key, written, lease)
    yield
    kv = await stage.raw.get(key)
    if kv is not None and kv.lease == lease and (lease == 0 or lease in stage.history.foreign):
        stage.history.let_go.add(key)
        await stage.raw.delete_if(key, kv.mod_revision)
    if lease in stage.history.foreign:
        await stage.raw.revoke(lease)


async def _garble_application(stage: Stage, step: Step) -> Fault:
    """Write over an application's key, which its node mends if it runs the application."""
    key = application_key(step.details["application"], step.target)
    lease = await _lease_for(stage, step, key)
    written = bytes.fromhex(step.details["hex"] or "00")
    stage.garbled[key] = written
    if step.details["lease"] != "own":
        stage.history.let_go.discard(key)
    await stage.raw.put(key, written, lease)
    if lease in stage.history.foreign:
        stage.spent.append(lease)
    yield


async def _steal(stage: Stage, step: Step) -> Fault:
    """Take a node's name under another lease, with an application, and let go: at once, or when the lease is over."""
    name, expires = step.target, step.details["let_go"] == "expire"
    keys = [node_key(name), application_key("ghost", name)]
    lease = await stage.grant(TTL if expires else _SAFE)
    if not expires:
        stage.history.let_go.difference_update(keys)
    else:
        stage.history.let_go.update(keys)
    routes, application = write_routes("thief", 1), write_application(name, "ghost", 1, 2)
    await stage.raw.put_all(list(zip(keys, (routes, application), strict=True)), lease)
    yield
    stage.history.let_go.update(keys)
    if not expires:
        await stage.raw.revoke(lease)
    async with asyncio.timeout(60):
        while await stage.lease_of(keys[0]) == lease or await stage.lease_of(keys[1]) == lease:
            await asyncio.sleep(0.05)


async def _junk(stage: Stage, step: Step) -> Fault:
    written = bytes.fromhex(step.details["hex"])
    for name in step.details["keys"]:
        key = f"{ROUTES}{name}".encode()
        stage.foreign[key] = written
        await stage.raw.put(key, written)
    yield


async def _burst(stage: Stage, step: Step) -> Fault:
    async with _crowd(stage, step.details["count"]):
        yield


@asynccontextmanager
async def _crowd(stage: Stage, count: int) -> AsyncIterator[None]:
    """Let many nodes come at once, and go in one revision."""
    lease = await stage.grant(_SAFE)
    names = [f"burst{number}@chaos" for number in range(count)]
    pairs = [(node_key(name), write_routes(name, 1)) for name in names]
    pairs += [(application_key("burst", name), write_application(name, "burst", 1, 2)) for name in names]
    stage.history.let_go.difference_update(key for key, _ in pairs)
    await stage.raw.put_all(pairs, lease)
    yield
    stage.history.let_go.update(key for key, _ in pairs)
    await stage.raw.revoke(lease)


# Daily life


async def _configure(stage: Stage, step: Step) -> Fault:
    node, item, value = step.target, step.details["item"], step.details["value"]
    prefix = (
        f"services/ergo/config/{CLUSTER}/{node}/",
        f"services/ergo/cluster/{CLUSTER}/config/{node}/",
        f"services/ergo/cluster/{CLUSTER}/config/*/",
        "services/ergo/config/global/",
    )[step.details["level"] - 1]
    key = f"{prefix}{item}".encode()
    if value is None:
        if (kv := await stage.raw.get(key)) is not None:
            await stage.raw.delete_if(key, kv.mod_revision)
    else:
        await stage.raw.put(key, bytes.fromhex(value[4:]) if value.startswith("hex:") else value.encode())
    yield


async def _publish(stage: Stage, step: Step) -> Fault:
    registrar = stage.living(step.target)
    name, state = step.details["application"], step.details["state"]
    weight = weight_of(registrar.life, step.details["weight"])
    async with registrar.changing:
        answer = await registrar.ask("publish", application=name, weight=weight, state=state)
        if "error" not in answer:  # else it counts as not published
            registrar.applications[name] = weight, state
    yield


async def _withdraw(stage: Stage, step: Step) -> Fault:
    registrar = stage.living(step.target)
    async with registrar.changing:
        answer = await registrar.ask("withdraw", application=step.details["application"])
        if "error" not in answer:
            registrar.applications.pop(step.details["application"], None)
    yield


_FAULTS: dict[str, Callable[[Stage, Step], Fault]] = {
    **dict.fromkeys(("cut", "refuse", "black_hole", "delay", "throttle"), _network),
    **dict.fromkeys(("kill_member", "pause_member", "lose_majority", "forget_tokens"), _member),
    "kill": _kill,
    "leave": _leave,
    "stop": _stop,
    "block": _block,
    "revoke": _revoke,
    "compact": _compact,
    "change_password": _change_password,
    "forbid": _forbid,
    "delete_node": _delete_node,
    "delete_application": _delete_application,
    "garble_node": _garble_node,
    "garble_application": _garble_application,
    "steal": _steal,
    "junk": _junk,
    "burst": _burst,
    "configure": _configure,
    "publish": _publish,
    "withdraw": _withdraw,
}
