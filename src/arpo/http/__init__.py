"""The HTTP client that tools, endpoints and judges share, and the limits it keeps to."""
