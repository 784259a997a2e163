"""Makes the records that a run reads from images and captions in their published files.

The words of this folder, in the order in which data passes:

    corpus      images and texts in their published files, or in one's own
    annotation  one line of an annotation file: an image's name with its captions
    entry       one step of reading a corpus: an example, or the reason why it is unusable
    example     an image with its captions
    sample      the files of one key of an archive; it becomes an example
    piece       a run of entries, or one archive, that is read at once
    task        one shard to write, from one or more pieces
    shard       an ArrayRecord file
    dataset     the result of a preparation: the shards of all splits, and TFDS's metadata
"""
