"""Limits on clients: fair shares, networks, user names. Pure."""
