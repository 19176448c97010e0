"""What several commands have in common: how flags and helps are made, output, and what a command shows or serves."""
