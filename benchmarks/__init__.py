"""Benchmarks, each prints one table; a package, since Opacus installs one of the same name."""
