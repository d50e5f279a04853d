"""The duties that keep the queues moving: promote, rescue, prune and the upkeep of indexes."""
