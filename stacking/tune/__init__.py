"""Implements `stacking tune`: finds by measurement what runs each stage fastest at the recipe's global batch.

Data flow: `candidate` defines the dimensions, `space` restricts them to a stage on this machine and its memory,
`search` chooses what to measure and in what order, `measure` runs the trials, `store` keeps their results, `explain`,
`write` and `picture` report. Tuning never changes what an update computes.
"""
