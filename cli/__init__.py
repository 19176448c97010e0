"""The command line: `popkernel start`, `status`, `check` and their kin."""
