"""The corpora that can be prepared, one small file each."""

from r2d2_jax.preparation.corpora.aic_icc import AicIcc
from r2d2_jax.preparation.corpora.chinese_clip import ChineseClip, Muge
from r2d2_jax.preparation.corpora.classification import Classification
from r2d2_jax.preparation.corpora.coco_cn import CocoCn
from r2d2_jax.preparation.corpora.corpus import Corpus
from r2d2_jax.preparation.corpora.flickr30k_cn import Flickr30kCn
from r2d2_jax.preparation.corpora.flickr30k_cna import Flickr30kCna
from r2d2_jax.preparation.corpora.huggingface import HuggingFace
from r2d2_jax.preparation.corpora.json_lines import JsonLines
from r2d2_jax.preparation.corpora.pairs import Pairs
from r2d2_jax.preparation.corpora.webdataset import WebDataset
from r2d2_jax.preparation.corpora.zero import Zero
from r2d2_jax.preparation.corpora.zero_folder import ZeroFolder
from r2d2_jax.preparation.corpora.zero_pairs import Icm, Icr, Iqm, Iqr

CORPORA: dict[str, type[Corpus]] = {
    corpus.name: corpus
    for corpus in (
        JsonLines,
        Pairs,
        WebDataset,
        HuggingFace,
        ChineseClip,
        Zero,
        ZeroFolder,
        Icr,
        Iqr,
        Icm,
        Iqm,
        Muge,
        Flickr30kCn,
        Flickr30kCna,
        CocoCn,
        AicIcc,
        Classification,
    )
}
