"""The viewer: recorded runs as a local web page, one self-contained file, or a tree in the terminal.

    forks        what a fork paid off: the sibling's line against the probe's
    rows         one record as a row of a table, its entropies as sums, its tips
    index        an SQLite index over a run's event logs, in the user's cache
    table        which trees fit a query, and how branching did in them
    trees        one record as the answer that draws a tree
    pieces       recorded tokens as text, piece by piece
    entropies    curves around tool results, and calibration
    overview     runs, their recipes, events and metrics
    evaluations  evaluations of a run, or the benchmarks of an evaluation
    sample_log   the samples of an evaluation, as they come
    memo         a value that is made again when its files have changed
    library      a request to its answer
    server       HTTP on this machine alone
    page         the built page, and the export

It reads what runs wrote and writes nothing into them. What the answers hold stands in viewer/src/api.ts.
"""
