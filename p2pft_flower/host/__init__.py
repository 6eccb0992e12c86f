"""What runs: a host's peers from the plan to the end, over the transport, by agreement, into files."""
