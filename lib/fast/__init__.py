"""Faster forms of lib/modeling: the same signatures and, up to rounding, the same numbers.

lib/engine/build.py puts them in place where a network is built for a run; tests/fast holds each to
its plain form.
"""
