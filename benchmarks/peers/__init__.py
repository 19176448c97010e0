"""Measure popkernel beside other POP3 servers from Debian's packages: `python -m benchmarks.peers`."""
