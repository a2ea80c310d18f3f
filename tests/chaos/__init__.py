"""Chaos: disturbs real chains with signals, damaged files, full disks and wrong clocks, and compares what comes out.

`tools/chaos` runs it. It is among the tests because it needs the checkout, not the installed package, and because
`tests` already is a package, so nothing has to be put on the path.
"""
