"""What an operator asks etcd directly, and no mirror can tell: leases, revisions, keys of other nodes.

One question, one answer: nothing here watches, claims a name or keeps anything. The command line is built on it.
"""
