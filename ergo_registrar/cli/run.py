"""`ergo-registrar run`: any program, registered for as long as it runs."""

import dataclasses
from enum import StrEnum
from typing import Annotated, Any

import typer

from ergo_registrar import ApplicationMode, ApplicationRoute, ApplicationState, Options, Registrar, Route
from ergo_registrar.cli import running
from ergo_registrar.cli.connecting import connecting
from ergo_registrar.cli.output import complain
from ergo_registrar.cli.run_program import CannotStartError, Life, find
from ergo_registrar.errors import ValidationError


class Mode(StrEnum):
    """What the program's end means to its node."""

    TEMPORARY = "temporary"
    TRANSIENT = "transient"
    PERMANENT = "permanent"


@connecting
def run(
    options: Options,
    command: Annotated[list[str], typer.Argument(metavar="COMMAND", help="The program and its arguments, behind --.")],
    node: Annotated[str, typer.Option("--node", "-n", help="The name to register, such as web1@myhost.")],
    route: Annotated[
        list[str],
        typer.Option("--route", "-r", metavar="HOST:PORT", help="How others reach the program. Again for more."),
    ],
    app: Annotated[
        list[str] | None, typer.Option("--app", "-a", metavar="NAME", help="An application it runs. Again for more.")
    ] = None,
    weight: Annotated[int, typer.Option(min=0, help="How often to pick it: twice the weight, twice as often.")] = 1,
    tag: Annotated[
        list[str] | None,
        typer.Option("--tag", metavar="TAG", help="A tag of its applications; Ergo 3.1 reads none. Again for more."),
    ] = None,
    mode: Annotated[Mode, typer.Option(help="The mode of its applications, as Ergo has it.")] = Mode.PERMANENT,
    ready_tcp: Annotated[
        bool, typer.Option("--ready-tcp", help="Publish the applications only when every route accepts connections.")
    ] = False,
    drain_time: Annotated[
        float, typer.Option(min=0, help="Seconds that nobody picks it, before a stop signal is passed on; 0: at once.")
    ] = 1.0,
    lease_ttl: Annotated[
        float | None,
        typer.Option(help="Seconds that others see it after this machine died.", show_default="10"),
    ] = None,
    claim_timeout: Annotated[
        float | None,
        typer.Option(help="Seconds to wait for a name that is taken, as after a crash.", show_default="0"),
    ] = None,
) -> None:
    """Run a program, and register it while it lives. It needs to know nothing of etcd.

    `ergo-registrar run --node web1@myhost --route myhost:8000 --app web -- python -m http.server 8000`

    The name is taken first: if somebody has it, the program is not started. The applications are published when the
    program runs, with `--ready-tcp` when it accepts connections. When it ends, however it does, all is gone at once.

    SIGTERM, SIGINT and SIGQUIT stop it: its applications get weight -1, so that nobody picks them any more, and
    `--drain-time` later the signal is passed on. A second one ends the waiting. SIGHUP, SIGUSR1, SIGUSR2 and SIGWINCH
    are passed on as they are. All go to the program alone, so in a shell script let `exec` start the last one.

    When etcd is away, the program goes on, and is registered again when etcd is back; standard error tells of both.
    The program inherits the environment, ERGO_REGISTRAR_* included, and the standard streams; it gets a session of its
    own. If this command is killed, Linux kills the program with it; elsewhere it lives on unregistered. On Windows
    there are no signals to pass on: a stop ends the program at once.

    Exit codes: the program's own, or 128 + N when signal N ended it; 127 there is no such program; 126 it cannot be
    run; 1 it could not be registered; 2 a wrong option.
    """
    routes = [_route(text) for text in route]
    applications = [
        ApplicationRoute(
            node, name, weight, ApplicationMode[mode.name], ApplicationState.RUNNING, tags=tuple(tag) if tag else None
        )
        for name in app or ()
    ]
    changes: dict[str, Any] = {"lease_ttl": lease_ttl, "claim_timeout": claim_timeout}
    if tag and options.application_route_layout == "v3.1":
        changes["application_route_layout"] = "tags"
    try:
        options = dataclasses.replace(options, **{name: value for name, value in changes.items() if value is not None})
        Registrar(options, node=node, routes=routes, applications=applications)  # which checks them, and sends nothing
    except ValidationError as error:
        raise typer.BadParameter(str(error)) from None
    try:
        life = Life(find(command), node, routes, applications, drain_time, ready_tcp)
        ended_by = running.run(lambda: life.run(options))
    except CannotStartError as error:
        complain(str(error))
        raise typer.Exit(error.exit_code) from None
    if life.exit_code is None:  # a signal came before the program was started
        raise typer.Exit(128 + (ended_by or 0))
    raise typer.Exit(life.exit_code)


def _route(text: str) -> Route:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal() or not 0 < int(port) <= 65535:
        raise typer.BadParameter(f"must be HOST:PORT, such as myhost:8000, not {text!r}", param_hint="--route")
    return Route(host.strip("[]"), int(port))
