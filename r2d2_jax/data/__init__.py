"""What a run reads: records of prepared datasets, mixed, augmented and tokenised into batches in host memory.

The words of this folder, in the order in which data walks:

    record   an image with its captions in its place in a shard
    mixture  the training records of one dataset or several, under common numbers
    row      a record in its place in a run, augmented; `b` of them are a batch
"""
