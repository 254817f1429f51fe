"""Training on several workers: launch and monitoring, collectives, replicas, sharding, BatchNorm over all workers."""
