"""The viewer: recorded runs as a local web page, one self-contained file, or a tree in the terminal.

    forks        compares the line of a sibling with the line of its probe
    rows         one record as a row of a table, sums of its entropies, and its tips
    index        an SQLite index over a run's event logs, in the user's cache
    table        the trees that match a query, and the effect of branching in them
    trees        one record as the JSON that draws a tree
    pieces       decodes recorded tokens
    entropies    curves around tool results, and calibration
    overview     runs, their recipes, events and metrics
    evaluations  evaluations of a run, or the benchmarks of an evaluation
    sample_log   the samples of an evaluation, as they come
    memo         a value that is made again when its files have changed
    library      a request to its answer
    server       HTTP on this machine alone
    page         the built page, and the export

The viewer reads runs and writes nothing into their folders. viewer/src/api.ts describes its answers.
"""
