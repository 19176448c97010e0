"""The configuration: keys, values, TOML, addresses, user table."""
