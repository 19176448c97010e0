"""Decide what one POP3 session does. Sans I/O."""
