"""Deliberately broken backends, each of which a probe has to catch."""
