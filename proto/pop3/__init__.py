"""POP3 and what belongs to it: commands, AUTH, octets of a message, the PROXY header. Pure."""
