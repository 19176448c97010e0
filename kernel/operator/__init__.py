"""Serve the operator of a running server: control socket, status, traces, quota of log lines."""
