"""What a run reads: records of prepared datasets, mixed, augmented and tokenised into batches in host memory.

Terms, in the order in which the data takes these forms:

    record   an image with its captions, as a shard stores it
    mixture  the training records of one dataset or several, under common numbers
    row      the augmented record at one position of the training stream; `b` rows are a batch
"""
