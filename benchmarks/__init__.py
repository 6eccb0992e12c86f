"""Benchmarks, which print tables; this is a package, since Opacus installs one of the same name."""
