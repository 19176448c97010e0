"""ZeroMQ's wire protocol. Pure."""
