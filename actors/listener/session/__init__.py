"""One POP3 session. Sans I/O."""
