"""All that speaks to etcd, or runs one. Nothing else in the package uses gRPC."""

import os

# Read by gRPC when it is imported. Its handlers for a fork are on unless told otherwise, do not cover asyncio, and kill
# one child in four (measured on 1.85; its issue 19793 is one of many).
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
