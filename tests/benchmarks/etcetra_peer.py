"""etcetra, run by a Python that has it, which has nothing of this package but conversation.py.

`python -m tests.benchmarks.etcetra_peer follow ENDPOINT PREFIX` is a follower; `... list ENDPOINT PREFIX` reads a
prefix and says how many keys that are, or what came of it, and how long it took.
"""

import asyncio
import sys
import time

from etcetra import EtcdClient, HostPortPair

from tests.benchmarks.conversation import converse, say


async def main() -> None:
    what, endpoint, prefix = sys.argv[1:]
    host, _, port = endpoint.rpartition(":")
    async with EtcdClient(HostPortPair(host, int(port))).connect() as etcd:
        if what == "follow":
            events = aiter(etcd.watch_prefix(prefix))

            async def follow() -> str:
                key: str = (await anext(events)).key
                return key

            await converse(follow, lambda key: key.split("/")[-2])
        else:
            await etcd.get_prefix("nothing/")  # so that it is connected
            began = time.perf_counter()
            try:
                found = await etcd.get_prefix(prefix)
            except Exception as error:  # noqa: BLE001  # whatever the peer raises is what is to be told
                say({"error": f"{type(error).__name__}: {error}"})
            else:
                say({"seconds": time.perf_counter() - began, "keys": len(found)})


if __name__ == "__main__":
    asyncio.run(main())
