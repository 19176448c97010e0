"""Init: the process that the operator starts."""
