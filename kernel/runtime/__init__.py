"""What every process is made of: actor, channel, loop, log, tap."""
