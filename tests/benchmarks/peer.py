"""`python -m tests.benchmarks.peer KIND ENDPOINT CLUSTER`: a follower in a process of its own (see conversation.py)."""

import asyncio
import sys

from tests.benchmarks.conversation import converse
from tests.benchmarks.followers import FOLLOWERS, application


async def main() -> None:
    kind, endpoint, cluster = sys.argv[1:]
    async with FOLLOWERS[kind](endpoint, cluster) as follow:
        await converse(follow, application)


if __name__ == "__main__":
    asyncio.run(main())
