"""Search: documents become passages, and passages an index that is built once and then memory-mapped.

Knows words, scores, vectors and files. Refuses to know tools, training tasks and the web.
"""
