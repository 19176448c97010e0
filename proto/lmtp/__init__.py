"""The server's side of LMTP. Pure."""
