"""Door 2: a self-hosted server. It turns HTTP into requests, hands them to one job core, and shapes the answers."""
