"""popkernel: a POP3 server built as a microkernel of isolated actors."""

__version__ = "0.1.0"
