"""Reinforcement learning: the loop, what surrounds it, and what it decides."""
