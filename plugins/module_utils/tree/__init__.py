"""Puts a set of files onto a host as one change: compare, test on a copy, swap.

Standard library only, Python 3.9 or newer. `request` is used on both sides: the action plugin checks what is asked for
and packs the rendered texts; all the rest runs on the host:

    engine -> store (what is ours) -> plan (what differs) -> trial (does it work) -> swap (do it, or undo it)

What is atomic: each file by itself (a reader sees the old or the new one, never a part). The set as a whole is not: the
renames follow each other within a few milliseconds. A run that fails undoes what it did; a run that is killed is
mended by the next one, because the manifest names old and new files before the first of them is touched.
"""
