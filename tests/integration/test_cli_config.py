"""`ergo-registrar config`, through the real entry point; what it did is looked at without this package."""

import asyncio
import dataclasses
import os
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path
from typing import TypeVar

import anyio
import msgspec
import pytest

from ergo_registrar import ConfigLevel, ConflictError, Options
from ergo_registrar.admin.config import configured
from ergo_registrar.cli.config_read import ExplainDocument, ListDocument
from ergo_registrar.cli.config_transfer import ImportDocument
from ergo_registrar.cli.config_write import WrittenDocument
from ergo_registrar.core.config_diff import Stored, differences
from ergo_registrar.testing.proxy import FaultProxy
from tests.integration.support import Key, Raw

pytestmark = pytest.mark.timeout(170)  # many processes, each of which starts Python anew, on a machine that is busy

T = TypeVar("T")
NODE = "web1@host"


@dataclasses.dataclass
class Done:
    """How a command ended, and what it printed."""

    code: int
    out: str
    err: str

    def document(self, kind: type[T], code: int = 0) -> T:
        """What it printed as JSON, which must be one line of this type and nothing else."""
        assert (self.code, self.err) == (code, ""), self
        assert self.out.count("\n") == 1
        return msgspec.json.decode(self.out, type=kind, strict=True)

    def said(self) -> str:
        """What it said went wrong, or what is wrong with how it was called, in one line."""
        return " ".join(self.err.replace("│", " ").split())


class Etcd:
    """The configuration of a cluster of the test's own, and of one node of it."""

    def __init__(self, raw: Raw, options: Options) -> None:
        self.raw = raw
        self.options = options
        self.cluster = options.cluster
        self.item = f"item.{uuid.uuid4().hex}"  # the global level is everybody's
        self.prefixes = {
            "cross-cluster-node": f"services/ergo/config/{self.cluster}/{NODE}/",
            "cluster-node": f"services/ergo/cluster/{self.cluster}/config/{NODE}/",
            "cluster": f"services/ergo/cluster/{self.cluster}/config/*/",
            "global": "services/ergo/config/global/",
        }

    async def put(self, level: str, item: str, value: str | bytes) -> int:
        return await self.raw.put(self.prefixes[level] + item, value)

    async def keys(self, level: str) -> Iterable[Key]:
        return (await self.raw.under(self.prefixes[level])).values()

    async def under(self, level: str) -> dict[str, str]:
        prefix = self.prefixes[level]
        found = await self.raw.under(prefix)
        return {key.removeprefix(prefix): kv.value.decode(errors="backslashreplace") for key, kv in found.items()}

    def environment(self) -> dict[str, str]:
        kept = {name: text for name, text in os.environ.items() if not name.startswith("ERGO_REGISTRAR_")}
        kept.pop("FORCE_COLOR", None)
        own = {
            "ERGO_REGISTRAR_ENDPOINTS": ",".join(self.options.endpoints),
            "ERGO_REGISTRAR_CLUSTER": self.cluster,
            "COLUMNS": "200",
            "PYTHONUTF8": "1",
        }
        return kept | own


@pytest.fixture
async def there(raw: Raw, registrar_options: Options) -> AsyncIterator[Etcd]:
    there = Etcd(raw, registrar_options)
    yield there
    for prefix in there.prefixes.values():
        await raw.delete_prefix(prefix)


Config = Callable[..., Awaitable[Done]]


async def started(there: Etcd, *arguments: str, **environ: str) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "ergo_registrar.cli", "config", *arguments),
        stdin=pipe,
        stdout=pipe,
        stderr=pipe,
        env=there.environment() | environ,
    )


async def ended(process: asyncio.subprocess.Process, stdin: str = "") -> Done:
    try:
        async with asyncio.timeout(30):
            out, err = await process.communicate(stdin.encode())
    except BaseException:
        process.kill()
        await process.wait()
        raise
    assert process.returncode is not None
    return Done(process.returncode, out.decode(), err.decode())


@pytest.fixture
def config(there: Etcd) -> Config:
    """Run `ergo-registrar config`."""

    async def run(*arguments: str, stdin: str = "") -> Done:
        return await ended(await started(there, *arguments), stdin)

    return run


async def written(path: Path, content: str | bytes) -> str:
    """Write a file, and return its path."""
    await anyio.Path(path).write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


class TestReading:
    async def test_get_prints_what_the_highest_level_says(self, config: Config, there: Etcd) -> None:
        await there.put("cluster", there.item, "int:3")
        revision = await there.put("cluster-node", there.item, "int:2")
        assert await config("get", there.item) == Done(0, "3\n", "")
        assert await config("get", there.item, "--node", NODE) == Done(0, "2\n", "")
        assert await config("get", there.item, "--node", NODE, "--raw") == Done(0, "int:2\n", "")
        found = (await config("get", there.item, "--node", NODE, "--json")).document(Stored)
        key = there.prefixes["cluster-node"] + there.item
        assert found == Stored(ConfigLevel.CLUSTER_NODE, key, there.item, "int:2", 2, revision, winner=True)

    @pytest.mark.parametrize(
        ("text", "printed"),
        [
            ("float:0.50", "0.5"),
            ("bool:T", "true"),
            ("float:NaN", "nan"),
            ("int:x", "int:x"),
            ("", ""),
            ("a\nb ", "a\nb "),
        ],
    )
    async def test_get_prints_for_scripts(self, config: Config, there: Etcd, text: str, printed: str) -> None:
        await there.put("cluster", "x", text)
        assert await config("get", "x") == Done(0, f"{printed}\n", "")
        assert await config("get", "x", "--raw") == Done(0, f"{text}\n", "")

    async def test_a_missing_item_names_what_is_near(self, config: Config, there: Etcd) -> None:
        await there.put("cluster", "database.port", "int:1")
        for command in ("get", "explain"):
            done = await config(command, "databse.port", "--node", NODE)
            assert done.code == 1
            who = f"for node '{NODE}' of cluster '{there.cluster}'"
            assert done.said() == f"ergo-registrar: no item 'databse.port' {who}; did you mean 'database.port'?"
        assert (await config("get", "zzz")).said().endswith("`ergo-registrar config list` shows what there is")

    async def test_list_shows_what_counts(self, config: Config, there: Etcd) -> None:
        await there.put("cluster-node", "b.port", "int:2")
        await there.put("cluster", "b.port", "int:3")
        await there.put("cluster", "a.text", "")
        done = await config("list", "[ab].*", "--node", NODE)
        assert (done.code, done.err) == (0, "")
        assert [line.split() for line in done.out.splitlines()] == [
            ["item", "in", "etcd", "level"],
            ["a.text", '""', "3", "cluster"],
            ["b.port", "int:2", "2", "cluster-node"],
        ]
        found = (await config("list", "b.*", "--json")).document(ListDocument)
        assert (found.cluster, found.node) == (there.cluster, None)
        assert [(s.item, s.level, s.value, s.winner) for s in found.items] == [("b.port", ConfigLevel.CLUSTER, 3, True)]
        empty = await config("list", "zzz*")
        assert (empty.code, empty.out) == (0, "")
        assert "nothing is set for every node" in empty.err

    async def test_list_shows_what_does_not_count_too(self, config: Config, there: Etcd) -> None:
        await there.put("cluster-node", "port", b"\xff")
        await there.put("cluster", "port", "int:3")
        await there.put("cluster", "a/b", "1")
        await there.put("cluster", "esc", "\x1b[31m")
        done = await config("list", "--node", NODE)
        assert done.said() == "ergo-registrar: some of what stands there cannot be read; --all-levels shows it"
        assert "\x1b" not in done.out
        done = await config("list", "--node", NODE, "--all-levels")
        rows = [" ".join(line.split()) for line in done.out.splitlines()]
        assert "port \\xff (cannot be read) 2 cluster-node byte 0: a configuration value should be UTF-8" in rows
        assert "port int:3 3 cluster decides" in rows
        assert any(row.startswith(f"{there.prefixes['cluster']}a/b 1 (cannot be read) 3 cluster key") for row in rows)
        found = (await config("list", "port", "--level", "cluster-node", "--node", NODE, "--json")).document(
            ListDocument
        )
        assert [(s.item, s.raw, s.value, bool(s.problem)) for s in found.items] == [("port", "\\xff", None, True)]

    async def test_explain_shows_all_four_levels(self, config: Config, there: Etcd) -> None:
        revision = await there.put("cluster", "port", "int:3")
        await there.put("cluster-node", "port", b"\xff")
        found = (await config("explain", "port", "--node", NODE, "--json")).document(ExplainDocument)
        assert (found.cluster, found.node, found.item) == (there.cluster, NODE, "port")
        assert [(s.level.value, s.key, s.raw, s.value, s.winner) for s in found.levels] == [
            (1, there.prefixes["cross-cluster-node"] + "port", None, None, False),
            (2, there.prefixes["cluster-node"] + "port", "\\xff", None, False),
            (3, there.prefixes["cluster"] + "port", "int:3", 3, True),
            (4, there.prefixes["global"] + "port", None, None, False),
        ]
        assert found.levels[2].revision == revision
        done = await config("explain", "port")
        rows = [" ".join(line.split()) for line in done.out.splitlines()]
        assert rows[1:4] == [
            "1 cross-cluster-node - - - (needs --node)",
            "2 cluster-node - - - (needs --node)",
            f"3 cluster int:3 3 {revision} {there.prefixes['cluster']}port decides",
        ]


class TestWriting:
    async def test_set_says_what_was_and_what_is(self, config: Config, there: Etcd) -> None:
        at = ("--level", "cluster-node", "--node", NODE)
        assert await config("set", "port", "int:07", *at) == Done(0, "port at level 2 cluster-node: - -> int:7\n", "")
        assert await config("set", "port", "--type", "float", "1e1", *at) == Done(
            0, "port at level 2 cluster-node: int:7 -> float:10.0\n", ""
        )
        assert (
            await config("set", "port", "float:10", *at)
        ).out == "port at level 2 cluster-node: float:10.0 already\n"
        written = (await config("set", "port", "", *at, "--json")).document(WrittenDocument)
        assert (written.before, written.after, written.changed) == ("float:10.0", "", True)
        assert written.key == there.prefixes["cluster-node"] + "port"
        key = await there.raw.get(written.key)
        assert key is not None
        assert (key.value, key.modified) == (b"", written.revision)

    @pytest.mark.parametrize(
        ("arguments", "right"),
        [
            (["5432"], "write int:5432, or --type str 5432"),
            (["0.5"], "write float:0.5, or --type str 0.5"),
            (["True"], "write bool:True, or --type str True"),
            (["int:abc"], "a whole number of 64 bits, in decimal digits, such as 5432, not 'abc'"),
            (["int:"], "if it is text, say --type str"),
            (["--type", "int", "1.5"], "a whole number"),
            (["--type", "bool", "on"], "must be true or false, not 'on'"),
            (["--type", "str", "int:5"], "must be a str that does not read as 5"),
            (["--type", "number", "1"], "'int', 'float', 'bool', 'str'"),
            (["x", "--if", "a", "--if-absent"], "exclude each other"),
        ],
    )
    async def test_what_is_not_clear_is_refused(
        self, config: Config, there: Etcd, arguments: list[str], right: str
    ) -> None:
        done = await config("set", "x", *arguments, "--level", "cluster")
        assert (done.code, done.out) == (2, "")
        assert right in done.said()
        assert await there.under("cluster") == {}

    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            (["--type", "str", "5432"], "5432"),
            (["on"], "on"),
            (["nan"], "nan"),
            (["a:b"], "a:b"),
            (["bool:1"], "bool:true"),
        ],
    )
    async def test_what_is_clear_is_written(self, config: Config, there: Etcd, arguments: list[str], text: str) -> None:
        assert (await config("set", "x", *arguments, "--level", "cluster")).code == 0
        assert await there.under("cluster") == {"x": text}

    @pytest.mark.parametrize(
        ("arguments", "right"),
        [
            (["set", "a/b", "x", "--level", "cluster"], "without '/' or control characters, not 'a/b'"),
            (["set", "x", "y"], "--level"),
            (["set", "x", "y", "--level", "clutser"], "'cross-cluster-node', 'cluster-node', 'cluster', 'global'"),
            (["set", "x", "y", "--level", "cluster-node"], "say of which with --node"),
            (["set", "x", "y", "--level", "cluster", "--node", NODE], "is of no one node; leave --node out"),
            (["unset", "x", "--level", "global", "--node", NODE], "is of no one node; leave --node out"),
            (["unset", "x", "--level", "cluster-node", "--node", "*"], "must not be '*'"),
            (["get", "x", "--node", "a/b"], "node: must be"),
            (["list", "--level", "cluster", "--all-levels"], "exclude each other"),
            (["list", "--level", "cluster-node"], "say of which with --node"),
            (["expalin", "x"], "explain"),
        ],
    )
    async def test_a_wrong_word_says_what_is_right(self, config: Config, arguments: list[str], right: str) -> None:
        done = await config(*arguments)
        assert (done.code, done.out) == (2, "")
        assert right in done.said()

    async def test_set_if_is_a_compare_and_swap(self, config: Config, there: Etcd) -> None:
        at = ("--level", "cluster")
        assert (await config("set", "n", "int:1", *at, "--if-absent")).code == 0
        for refused in (["int:2", "--if-absent"], ["int:2", "--if", "int:5"], ["int:2", "--if", "1"]):
            done = await config("set", "n", *refused, *at)
            assert (done.code, done.out) == (3, "")
            assert "'int:1' stands there, where" in done.said()
        assert await there.under("cluster") == {"n": "int:1"}
        assert (await config("set", "n", "int:2", *at, "--if", "int:01")).code == 0
        assert (await config("unset", "n", *at, "--if", "int:1")).code == 3
        assert await there.under("cluster") == {"n": "int:2"}
        assert await config("unset", "n", *at, "--if", "int:2") == Done(0, "n at level 3 cluster: int:2 -> -\n", "")
        assert await there.under("cluster") == {}

    async def test_of_many_that_increment_none_is_lost(self, config: Config, there: Etcd) -> None:
        await there.put("cluster", "n", "int:0")

        async def increment() -> None:
            while True:
                now = int((await config("get", "n")).out)
                done = await config("set", "n", f"int:{now + 1}", "--level", "cluster", "--if", f"int:{now}")
                if done.code == 0:
                    return
                assert done.code == 3, done

        await asyncio.gather(*(increment() for _ in range(3)))
        assert await there.under("cluster") == {"n": "int:3"}

    async def test_unset_of_what_is_not_there_is_said(self, config: Config, there: Etcd) -> None:
        await there.put("cluster", "database.port", "int:1")
        done = await config("unset", "database.prot", "--level", "cluster")
        assert (done.code, done.out) == (0, "")
        assert "no item 'database.prot' at level 3 cluster; did you mean 'database.port'?" in done.said()
        assert await there.under("cluster") == {"database.port": "int:1"}

    async def test_what_cannot_be_read_can_be_replaced_and_taken_away(self, config: Config, there: Etcd) -> None:
        for arguments in (["set", "x", "y"], ["unset", "x"]):
            await there.put("cluster", "x", b"\xff")
            done = await config(*arguments, "--level", "cluster", "--json")
            written = done.document(WrittenDocument)
            assert (written.before, written.changed) == ("\\xff", True)
            assert await there.under("cluster") == ({} if written.after is None else {"x": "y"})


FILE = """\
cluster:
  database:
    port: 5432
    password: "5432"
  cache.ratio: 0.75
cluster-node:
  debug: true
"""


class TestFiles:
    async def test_import_does_what_its_dry_run_shows(self, config: Config, there: Etcd, tmp_path: Path) -> None:
        file = await written(tmp_path / "a.yaml", FILE)
        await there.put("cluster", "cache.ratio", "float:0.5")
        await there.put("cluster", "old", "x")
        rows = [
            ["+", "debug", "bool:true", "2", "cluster-node"],
            ["~", "cache.ratio", "float:0.5", "->", "float:0.75", "3", "cluster"],
            ["+", "database.password", "5432", "3", "cluster"],
            ["+", "database.port", "int:5432", "3", "cluster"],
            ["-", "old", "x", "3", "cluster"],
        ]
        dry = await config("import", file, "--node", NODE, "--dry-run", "--prune")
        assert (dry.code, dry.err) == (3, "")
        assert [line.split() for line in dry.out.splitlines()[1:]] == rows
        assert await there.under("cluster") == {"cache.ratio": "float:0.5", "old": "x"}
        assert await there.under("cluster-node") == {}
        done = await config("import", file, "--node", NODE, "--prune")
        assert (done.code, done.err) == (0, "")
        assert [line.split() for line in done.out.splitlines()[1:-1]] == rows
        (at,) = {key.modified for key in [*await there.keys("cluster"), *await there.keys("cluster-node")]}
        assert done.out.splitlines()[-1] == f"5 changed, at revision {at}"
        assert await there.under("cluster") == {
            "database.port": "int:5432",
            "database.password": "5432",
            "cache.ratio": "float:0.75",
        }
        assert await there.under("cluster-node") == {"debug": "bool:true"}
        again = await config("import", file, "--node", NODE, "--dry-run", "--prune")
        assert again == Done(0, "nothing to change\n", "")

    async def test_import_tells_what_it_does_as_json(self, config: Config, there: Etcd) -> None:
        await there.put("cluster", "a", "1")
        text = '{"cluster": {"a": 1, "b": {"c": "x"}}}'
        dry = await config("import", "-", "--dry-run", "--json", "--format", "json", stdin=text)
        planned = dry.document(ImportDocument, code=3)
        assert (planned.cluster, planned.node, planned.dry_run) == (there.cluster, None, True)
        changes = [(c.level, c.item, c.before, c.after) for c in planned.changes]
        assert changes == [(ConfigLevel.CLUSTER, "a", "1", "int:1"), (ConfigLevel.CLUSTER, "b.c", None, "x")]
        done = (await config("import", "-", "--json", "--format", "json", stdin=text)).document(ImportDocument)
        assert done == msgspec.structs.replace(planned, dry_run=False, revision=await there.raw.revision())
        assert (await config("import", "-", "--json", stdin=text)).document(ImportDocument).changes == []

    async def test_every_problem_is_told_and_nothing_is_written(
        self, config: Config, there: Etcd, tmp_path: Path
    ) -> None:
        text = "cluster:\n  good: 1\n  switch: on\n  list: [1]\n  a/b: 1\n  good: 2\nnode: {}\n"
        done = await config("import", await written(tmp_path / "bad.yaml", text))
        assert (done.code, done.out) == (2, "")
        lines = done.err.splitlines()
        assert [line.split(": ")[2] for line in lines[:-1]] == ["line 3", "line 4", "line 5", "line 6", "line 7"]
        assert lines[-1] == "ergo-registrar: nothing was written"
        assert await there.under("cluster") == {}

    @pytest.mark.parametrize(
        ("name", "data", "right"),
        [
            ("a.yaml", b"\xff", "is not UTF-8: byte 0"),
            ("a.toml", b"", "say which it is with --format"),
            ("a.yaml", b"cluster-node: {}", "say of which with --node"),
            ("none/a.yaml", None, "No such file or directory"),
        ],
    )
    async def test_a_wrong_file_says_what_is_right(
        self, config: Config, tmp_path: Path, name: str, data: bytes | None, right: str
    ) -> None:
        if data is not None:
            await written(tmp_path / name, data)
        done = await config("import", str(tmp_path / name))
        assert (done.code, done.out) == (2, "")
        assert right in done.said()

    @pytest.mark.parametrize("name", ["a.yaml", "a.json"])
    async def test_export_and_import_carry_a_node_to_another(
        self, config: Config, there: Etcd, tmp_path: Path, name: str
    ) -> None:
        await there.put("cluster-node", "port", "int:05432")
        await there.put("cross-cluster-node", "text", "on\n")
        await there.put("cluster", "ratio", "float:0x1p-2")
        await there.put("cluster", "broken", b"\xff")
        file = str(tmp_path / name)
        done = await config("export", file, "--node", NODE)
        assert (done.code, done.out) == (0, "")
        assert f"left out '{there.prefixes['cluster']}broken': byte 0" in done.err
        unchanged = await config("import", file, "--node", NODE, "--dry-run", "--prune")
        assert unchanged == Done(0, "nothing to change\n", "")
        assert (await config("import", file, "--node", "web2", "--json")).code == 0
        web2 = await there.raw.under(f"services/ergo/cluster/{there.cluster}/config/web2/")
        assert [kv.value for kv in web2.values()] == [b"int:5432"]
        await there.raw.delete_prefix(f"services/ergo/config/{there.cluster}/")
        await there.raw.delete_prefix(f"services/ergo/cluster/{there.cluster}/")

    async def test_export_can_be_one_level_and_go_to_a_pipe(self, config: Config, there: Etcd) -> None:
        await there.put("cluster", "a", "float:inf")
        assert await config("export", "-", "--level", "cluster") == Done(0, "cluster:\n  a: .inf\n", "")
        done = await config("export", "-", "--level", "cluster", "--format", "json")
        assert (done.code, done.out) == (1, "")
        assert "JSON has neither inf nor nan (cluster: a: inf); export YAML instead" in done.said()
        done = await config("export", "/nowhere/a.yaml", "--level", "cluster")
        assert (done.code, done.out) == (1, "")
        assert "cannot write '/nowhere/a.yaml': No such file or directory" in done.said()

    async def test_a_writer_in_between_is_not_overwritten(self, there: Etcd) -> None:
        """What was read is out of date: the transaction that would change it does nothing, those before it stay."""
        wanted = {ConfigLevel.CLUSTER: {f"i{number:03}": number for number in range(150)}}
        async with configured(there.options, None) as config:
            standing = await config.read(wanted)
            todo = differences(standing.stored, wanted)
            await there.put("cluster", "i120", "mine")
            done = 0
            with pytest.raises(ConflictError, match="i120': 'mine' stands there, where nothing was expected"):
                async for done, _ in config.make(todo):
                    assert done == 100
        assert done == 100
        found = await there.under("cluster")
        assert found.pop("i120") == "mine"
        assert found == {f"i{number:03}": f"int:{number}" for number in range(100)}

    @pytest.mark.parametrize(("first", "left"), [("i120", "100 of 150 were done before"), ("i020", "none was done")])
    async def test_import_says_how_far_it_came(self, there: Etcd, relay: FaultProxy, first: str, left: str) -> None:
        relay.delay(0.02)  # each transaction looks at its items before, one by one: that takes seconds now
        process = await started(there, "import", "-", ERGO_REGISTRAR_ENDPOINTS=relay.endpoint)
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"cluster:\n" + b"".join(b"  i%03d: %d\n" % (number, number) for number in range(150)))
        process.stdin.close()
        async with asyncio.timeout(20):
            await process.stdout.readline()  # what is to be done is known
        await there.put("cluster", first, "mine")
        relay.delay(0)
        async with asyncio.timeout(20):
            out, err = await process.communicate()
        assert process.returncode == 3
        assert len(out.splitlines()) == 150
        assert f"'{there.prefixes['cluster']}{first}': 'mine' stands there" in err.decode()
        assert err.decode().endswith(f"; {left}\n")
        assert len(await there.under("cluster")) == (101 if first == "i120" else 1)


class TestHelp:
    @pytest.mark.parametrize("command", ["get", "list", "explain", "set", "unset", "export", "import"])
    async def test_each_teaches_by_an_example(self, config: Config, command: str) -> None:
        done = await config(command, "--help")
        assert done.code == 0
        assert f"ergo-registrar config {command}" in done.out.partition("Examples:")[2]
        assert "--endpoints" in done.out

    async def test_the_levels_and_the_exit_codes(self, config: Config) -> None:
        done = await config("--help")
        for words in ("cross-cluster-node", "the highest decides", "int:5432", "3 etcd holds something else"):
            assert words in done.out

    async def test_an_etcd_that_is_not_there(self, there: Etcd) -> None:
        process = await started(there, "get", "x", "--endpoints", "127.0.0.1:1", "--request-timeout", "1")
        done = await ended(process)
        assert (done.code, done.out) == (1, "")
        assert "etcd could not be reached within 1 s (127.0.0.1:1:" in done.said()
