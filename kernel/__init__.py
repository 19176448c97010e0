"""The operating system and ZeroMQ: processes, channels, sandbox, supervision. Knows no actor's insides."""
