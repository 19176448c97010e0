"""Make the kernel's decisions, sans I/O: leases, deliveries, recipients."""
