"""From images and captions in the files that people have to the records that a run reads.

The words of this folder, in the order in which data walks:

    corpus      images and texts in the files that people have
    annotation  what one line of an annotation file says of an image
    entry       one step of reading a corpus: an example, or the reason why there is none
    example     an image with its captions, before it has a place in a shard
    sample      what one key of an archive holds; it becomes an example
    piece       what is read in one go: a run of entries, or one archive
    task        one shard to write, out of one piece or several
    shard       an ArrayRecord file
    dataset     what a preparation makes of a corpus: the shards of all splits, and what TFDS wants to know of them
"""
