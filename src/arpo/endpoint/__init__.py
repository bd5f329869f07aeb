"""Models behind OpenAI-compatible endpoints: the one client that the engine `openai`, the judge and the page summariser
share."""
