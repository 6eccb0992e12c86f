"""Benchmarks: each prints one table. (A package, as Opacus installs one of the same name.)"""
