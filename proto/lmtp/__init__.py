"""LMTP: the server's side of one connection. Pure."""
