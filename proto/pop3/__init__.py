"""POP3: commands, AUTH, octets of a message, the PROXY header. Pure."""
