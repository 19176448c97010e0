"""Provide the parts of every process: actor, channel, loop, log, tap."""
