"""`stacking tune`: what runs each stage fastest at the recipe's global batch, found by measuring.

Data flow: `candidate` says what can be chosen, `space` what a stage on this machine has of it, `memory` what cannot
fit, `search` which of the rest to measure and in what order, `measure` measures, `store` remembers, `explain`,
`write` and `picture` tell. Nothing that is tuned changes what an update computes.
"""
