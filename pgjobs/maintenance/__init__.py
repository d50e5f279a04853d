"""The duties that any process may do for all: promote, rescue, prune, and the care of the indexes."""
