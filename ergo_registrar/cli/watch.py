"""`ergo-registrar watch`: what happens in the cluster, as it happens."""

from datetime import datetime
from typing import Annotated, Any

import typer
from rich.text import Text

from ergo_registrar import (
    ApplicationLoaded,
    ApplicationStarted,
    ApplicationStopped,
    ApplicationStopping,
    ApplicationUpdated,
    ConfigUpdate,
    Event,
    EventsMissed,
    NodeJoined,
    NodeLeft,
    NodeRecovered,
    NodeSuspected,
    Options,
    Registrar,
    RegistrarConnected,
    RegistrarDisconnected,
)
from ergo_registrar.cli.connecting import Json, SuspectGrace, connecting, print_json, with_grace
from ergo_registrar.cli.event_lines import details, fields
from ergo_registrar.cli.output import console, printable, say_nothing_of_the_session
from ergo_registrar.cli.running import run

_GROUPS: dict[str, tuple[type[Event], ...]] = {
    "nodes": (NodeJoined, NodeLeft, NodeSuspected, NodeRecovered),
    "apps": (ApplicationLoaded, ApplicationStarted, ApplicationStopping, ApplicationUpdated, ApplicationStopped),
    "config": (ConfigUpdate,),
}
_TYPES = _GROUPS | {kind.__name__: (kind,) for group in _GROUPS.values() for kind in group}
_OF_THE_WATCH = (RegistrarConnected, RegistrarDisconnected, EventsMissed)  # always told: a gap must be seen
_LONGEST = max(len(kind.__name__) for kind in _OF_THE_WATCH)


def _types(text: str) -> Any:
    by_name = {name.lower(): kinds for name, kinds in _TYPES.items()}
    try:
        return by_name[text.lower()]
    except KeyError:
        raise typer.BadParameter(f"{text!r} is none of {', '.join(_TYPES)}") from None


@connecting
def watch(
    options: Options,
    types: Annotated[
        list[Any] | None,
        typer.Option(
            "--type",
            "-t",
            parser=_types,
            metavar="TYPE",
            help="Only these: nodes, apps, config, or the name of an event such as NodeLeft. May be repeated.",
            show_default="every event",
        ),
    ] = None,
    replay: Annotated[
        bool, typer.Option("--replay/--no-replay", help="Begin with what is there already, as events.")
    ] = True,
    suspect_grace: SuspectGrace = None,
    json: Json = False,
) -> None:
    """Tell what happens in a cluster, one line for each event, until Ctrl-C or SIGTERM, which end it with 0.

    It begins with RegistrarConnected; then what is there already, marked as present; then what happens, with the time
    at which it was told here. Lost sessions with etcd are told (RegistrarDisconnected), and when it is back all that
    happened meanwhile. Configuration is that of the whole cluster and of all clusters, as a node without items of its
    own sees it.

    For example:

    - `ergo-registrar watch`

    - `ergo-registrar watch --type nodes --type ConfigUpdate --no-replay --json`
    """
    wanted = tuple(kind for kinds in types or () for kind in kinds)
    run(lambda: _watch(options, wanted and (*wanted, *_OF_THE_WATCH), replay, suspect_grace, json))


async def _watch(
    options: Options, types: tuple[type[Event], ...], replay: bool, suspect_grace: float | None, json: bool
) -> None:
    tell = _tell_json if json else _tell
    say_nothing_of_the_session()  # it is told here
    async with Registrar(with_grace(options, suspect_grace)) as registrar:
        events = registrar.subscribe(*types, replay=replay)
        present = events.qsize()
        tell(RegistrarConnected(info=registrar.info(), revision=registrar.revision), False)
        async for event in events:
            tell(event, present > 0)
            present -= 1


def _tell(event: Event, present: bool) -> None:
    when = "present" if present else datetime.now().astimezone().isoformat(sep=" ", timespec="milliseconds")[11:23]
    line = Text(f"{when:<12}  ", style="dim")
    line.append(f"{type(event).__name__:<{_LONGEST}}", style="bold red" if _is_loss(event) else "green")
    line.append(f"  {printable(details(event))}", style="default")
    console.print(line, soft_wrap=True)


def _tell_json(event: Event, present: bool) -> None:
    time = datetime.now().astimezone().isoformat(timespec="milliseconds")
    head = {"type": type(event).__name__, "time": time, "present": present, "revision": event.revision}
    print_json(head | fields(event))


def _is_loss(event: Event) -> bool:
    return isinstance(event, RegistrarDisconnected | EventsMissed | NodeSuspected)
