"""What scripts/bench runs: mountstore and its peers under the same work, in alternating rounds.

    figures     samples, medians, quartiles, ratios
    client      the compiled program whose system calls are timed
    machine     what the figures were taken on; page cache, quiet, memory of processes
    systems     mountstore, the disk, a null file system, bindfs, gocryptfs: mounting and unmounting
    workloads   what is timed
    operations, large, growth    the three programmes and their tables
    report      Markdown, JSON, and the marked part of a document
    goals       which rows fall short
    program     the command line

Nothing here is part of the mountstore package.
"""
