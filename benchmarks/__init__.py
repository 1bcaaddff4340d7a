"""Measurements, each a program that opens with its question. `benchmarks/README.md` says how to run and read them."""
