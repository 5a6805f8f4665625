"""One result model, rendered as text, JSON or Markdown."""
