"""Learner ranks as actors of a Ray cluster. Ray is the extra `cluster`, and imported by functions of this package."""
