"""How the demo looks: calm, at most as wide as the terminal, plain where it is piped."""

import textwrap
from collections.abc import Mapping, Sequence

from rich.text import Text

from ergo_registrar import (
    ApplicationLoaded,
    ApplicationStarted,
    ApplicationStopped,
    ApplicationStopping,
    ConfigLevel,
    ConfigSource,
    Event,
    NodeJoined,
    NodeLeft,
)
from ergo_registrar.cli.event_lines import details
from ergo_registrar.cli.output import console, print_table

_LEVELS = {
    ConfigLevel.CROSS_CLUSTER_NODE: "1 cross-cluster, this node",
    ConfigLevel.CLUSTER_NODE: "2 cluster, this node",
    ConfigLevel.CLUSTER: "3 cluster-wide",
    ConfigLevel.GLOBAL: "4 global",
}
_INDENT = "   "


def introduction() -> None:
    """Say what follows."""
    _say("A cluster on etcd, seen from its start to its end. Ctrl-C puts everything away.", indent="")


def step(number: int, title: str, explanation: str) -> None:
    """Begin a step."""
    console.print()
    console.print(Text(f"{number}. {title}", style="bold"))
    _say(explanation, style="dim")


def etcd_answers(endpoint: str, seconds: float) -> None:
    """Say where etcd is."""
    _say(f"It answers at {endpoint} after {seconds:.2f} s. To look in from another terminal:")
    command(f"export ETCDCTL_ENDPOINTS={endpoint}")
    command("etcdctl get --prefix services/ergo/")


def command(line: str) -> None:
    """Show a shell command; one that is too long goes on in the next line, as a shell would take it."""
    if len(f"{_INDENT}$ {line}") > console.width:
        head, _, tail = line.rpartition(" ")
        line = f"{head} \\\n{_INDENT}    {tail}"
    _print(Text(f"{_INDENT}$ {line}", style="cyan"))


def processes(numbers: Mapping[str, int]) -> None:
    """Say which process each node is."""
    _say("Processes: " + ", ".join(f"{name} is {number}" for name, number in numbers.items()) + ".")


def event(seconds: float, told: Event) -> None:
    """Show an event, as it was told, and when."""
    line = Text(f"{_INDENT}{seconds:5.2f} s  ")
    line.append(f"{type(told).__name__:<19}", style="green")
    line.append(f" {details(told)}")
    _print(line)


def node_of(told: Event) -> str:
    """Return the node that an event is about, nothing for one about none."""
    match told:
        case NodeJoined() | NodeLeft():
            return told.name
        case ApplicationLoaded() | ApplicationStarted() | ApplicationStopping() | ApplicationStopped():
            return told.node
        case _:
            return ""


def spread(picked: Sequence[str], counts: Sequence[tuple[str, int, int]]) -> None:
    """Show who was picked, and for each node its weight and how often that was."""
    block = "█" if console.encoding.startswith("utf") else "#"
    _say(" ".join(picked))
    print_table(
        ("node", "weight", "picked", ""),
        [(name, str(weight), str(count), block * 2 * count) for name, weight, count in counts],
        indent=_INDENT,
    )


def configuration(sources: Mapping[str, ConfigSource]) -> None:
    """Show items: the text in etcd, the value, its Python type, and the level it came from."""
    print_table(
        ("item", "in etcd", "value", "Python type", "level"),
        [
            (item, source.raw or "", repr(source.value), type(source.value).__name__, _LEVELS[source.level])
            for item, source in sources.items()
        ],
        indent=_INDENT,
    )


def gone(name: str, seconds: float, since: str, status: str) -> None:
    """Say how long it took until a node was gone, and how its process ended."""
    took = f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"
    _say(f"{name} was gone {took} {since} (its process: {status}).", style="bold")


def done(seconds: float) -> None:
    """Say that all of it went well."""
    console.print()
    _say(f"Done in {seconds:.1f} s. Every process that the demo started has ended.", indent="", style="bold")


def interrupted(signal_name: str) -> None:
    """Say that somebody ended it."""
    console.print()
    _say(f"Ended by {signal_name}. Every process that the demo started has ended.", indent="")


def _say(text: str, *, indent: str = _INDENT, style: str = "") -> None:
    for line in textwrap.wrap(text, console.width - len(indent)):
        _print(Text(f"{indent}{line}", style=style))


def _print(line: Text) -> None:
    console.print(line, soft_wrap=True)
