"""ARM without a board: aarch64 CPython under QEMU's user mode, and a count of what one inference executes.

It proves numbers and packaging. It says nothing about speed: what it counts is a proxy of cost, never a latency.
"""
