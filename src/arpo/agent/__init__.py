"""The trained agent in use: asked from Python, from the terminal, over HTTP and over MCP."""
