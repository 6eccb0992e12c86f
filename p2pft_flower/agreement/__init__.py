"""Which peers are in the next view: agreement among the peers, pure, without clock, thread or socket."""
