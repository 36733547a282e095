"""All that speaks to etcd, or runs one. Nothing else in the package uses gRPC."""
