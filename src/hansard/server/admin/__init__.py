"""For operators: what this server is and does, and its models."""
