"""Serving as it happens: requests that come, go and share states, against a pool of slots."""
