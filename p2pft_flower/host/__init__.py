"""A host: it runs its peers from the plan to the end, over the transport, by agreement, into files."""
