"""What `python -m distill.compare` is made of: runs → groups that may be compared → table, page, JSON."""
