"""Read and check the configuration: keys, values, TOML, addresses, user table."""
