"""`ergo-registrar doctor`: what is wrong between here and the cluster, and what to do about it."""

import logging
from collections import Counter
from typing import Annotated

import typer
from rich.text import Text

from ergo_registrar import Options
from ergo_registrar.admin.doctor import examine
from ergo_registrar.admin.finding import Finding, Severity
from ergo_registrar.cli.connecting import Json, connecting, print_json
from ergo_registrar.cli.output import console, printable
from ergo_registrar.cli.running import run_to_end

_STYLES = {Severity.OK: "green", Severity.NOTE: "cyan", Severity.WARNING: "yellow", Severity.ERROR: "bold red"}


@connecting
def doctor(
    options: Options,
    node: Annotated[
        str | None,
        typer.Option("--node", "-n", help="Look as a member of this name; else as an observer, who needs less."),
    ] = None,
    json: Json = False,
) -> None:
    """Find out what is wrong, and what to do about it. It changes nothing.

    From the outside in, as far as it comes: each endpoint (reachable, TLS, version, leader, alarms, room, latency);
    the login; the permissions that a member or an observer needs, prefix by prefix; the keys (unreadable, orphaned,
    without a lease, about to expire).

    Give it the options of the process that has trouble, and run it where that process runs. An endpoint that hangs
    takes --request-timeout, and is reported.

    Each finding has a severity: `error` does not work; `warning` will, or may, stop working; `note` is good to know;
    `ok` is well. With `--json` they are a list of objects with `id`, `severity`, `where`, `what` and `cure`.

    Exit codes: 0 no error was found, 1 one was, 2 a wrong option.
    """
    findings: list[Finding] = []
    logging.getLogger("ergo_registrar").setLevel(logging.CRITICAL)  # what goes wrong becomes a finding

    async def look() -> None:
        findings.extend(await examine(options, node))

    run_to_end(look)
    if json:
        print_json(findings)
    else:
        _show(findings)
    raise typer.Exit(any(finding.severity is Severity.ERROR for finding in findings))


def _show(findings: list[Finding]) -> None:
    for finding in findings:
        severity = f"{finding.severity.value:<8}", _STYLES[finding.severity]
        console.print(Text.assemble(severity, printable(f"{finding.where}: {finding.what}")), soft_wrap=True)
        if finding.cure:
            console.print(Text(f"        > {printable(finding.cure)}"), soft_wrap=True)
    counts = Counter(finding.severity for finding in findings)
    total = [f"{counts[each]} {each.value}{'s' if counts[each] != 1 else ''}" for each in list(Severity)[:0:-1]]
    console.print(", ".join(total))
