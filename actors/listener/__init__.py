"""Serve POP3 clients: the listener actor."""
