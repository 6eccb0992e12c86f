"""The wire: messages, headers, addresses, and the errors of an exchange."""
