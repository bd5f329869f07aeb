"""The engine `vllm`: vLLM inside this process, or behind one or several servers of it. Importing this needs no vLLM."""
