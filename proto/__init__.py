"""Pure: formats, protocols and the topology table. No I/O, no clock, no randomness."""
