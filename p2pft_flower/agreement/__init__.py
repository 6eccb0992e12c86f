"""Agreement among the peers on the next view: pure, without clock, thread or socket."""
