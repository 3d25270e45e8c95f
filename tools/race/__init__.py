"""The race of `make bench`: steno beside its peers on the same random weights, each arm in a process of its own."""
