"""`ergo-registrar config`: the commands that read and write configuration in etcd."""

import typer

from ergo_registrar.cli.config_read import explain_item, get, list_items
from ergo_registrar.cli.config_transfer import export_file, import_file
from ergo_registrar.cli.config_write import set_item, unset_item

_HELP = """Read and change the configuration in etcd, at its four levels.

Of an item that stands at several levels, the highest decides:

1. `cross-cluster-node`: one node, above all else

2. `cluster-node`: one node of the cluster

3. `cluster`: every node of the cluster

4. `global`: every node of every cluster

Values have types: `int:5432`, `float:0.75`, `bool:true`; anything else is text.
"""

_EPILOG = (
    "Exit codes: 0 done; 1 it failed, or the item is missing; 2 a wrong command, option, name, value or file; "
    "3 etcd holds something else: `--if` or `--if-absent` does not hold, someone else was faster than `import`, or "
    "`import --dry-run` would change something; 130 ended by Ctrl-C; 143 ended by SIGTERM."
)

config: typer.Typer = typer.Typer(name="config", help=_HELP, epilog=_EPILOG, no_args_is_help=True)
config.command("get")(get)
config.command("list")(list_items)
config.command("explain")(explain_item)
config.command("set")(set_item)
config.command("unset")(unset_item)
config.command("export")(export_file)
config.command("import")(import_file)
