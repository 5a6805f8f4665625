"""The auditor: finds the catalogue's hazards in source text, and quotes the lines that show them.

Nothing audited is imported or run, and neither is torch or triton.
"""
