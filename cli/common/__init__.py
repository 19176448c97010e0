"""What several commands share: flags and help, output, traces, sample sites."""
