"""What `python -m distill.store` does with the stores that teach fills.

listing.py   the stores below a folder, in a table
show.py      one store: its header, its counts, some rows
check.py     every row read, every damage named
prune.py     what no run names
"""
