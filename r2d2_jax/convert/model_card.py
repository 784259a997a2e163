"""The model card of a folder that others read: how to use it, what it is for, what led to it, where it fails."""

from collections.abc import Iterator, Mapping

from huggingface_hub import ModelCardData

from r2d2_jax.lineage import described
from r2d2_jax.models.store import Model

TAGS = ("r2d2", "image-text-retrieval", "image-text-matching")
NOT_MEASURED = """The run that made these weights left no figures of them. `r2d2-evaluate` measures the folder from
which this one was exported, on any prepared dataset."""
MEASURED = """What the run itself measured of these weights, in per cent: `i2t` is image to text, `t2i` text to image,
`r10` recall at 10, and `chance` what guessing reaches. It is one seed, without intervals.

| on | stage and figure | per cent |
|---|---|---:|
"""


def model_card(model: Model, use: str) -> str:
    """The content of a folder's `README.md`, with the front matter that the Hugging Face hub reads.

    Args:
        model: the model in the folder.
        use: how the folder is used, with code to start from.
    """
    header = ModelCardData(
        language="zh", license="other", pipeline_tag="zero-shot-image-classification", tags=[*TAGS]
    ).to_yaml()
    return f"""---
{header}
---

# R2D2, Chinese image-text matching

{model.summary()}.

The model of Xie et al., "CCMB: A Large-scale Chinese Cross-modal Benchmark" (arXiv 2205.03860), in the published names,
written by r2d2_jax. All weights are float32.

## How to use it

{use}

{_ranking(model)}

{_preprocessing(model)}

## Intended use

Ordering pictures for a Chinese sentence, and Chinese sentences for a picture: search, sorting, research on such models.
It is not made to recognise or to judge persons, and nothing that matters to somebody should depend on its scores before
they have been measured on such data.

## Training and data

{_bulleted(described(model.lineage))}

The oldest training comes first. What is in these data, and under which terms they may be used, only whoever has them
can say.

## Evaluation

{_evaluation(model.evaluation)}

## Known failings

{_bulleted(_failings(model))}

## Licence

The weights are under the licence of what they were made from, and of the data that they were trained on, which this
card cannot know: whoever publishes the folder names it here, and in `license` above. The code in this folder is under
Apache-2.0.
"""


def _ranking(model: Model) -> str:
    if not model.config.cross.layers:
        return "There are no cross encoders (PRD2): the cosine of the embeddings is the score."
    return (
        "`match(image_tokens, text_tokens, attention_mask)` gives the probability that an image and a text match. It "
        "re-ranks what the cosine of the embeddings has found; the published score is the sum of both."
    )


def _preprocessing(model: Model) -> str:
    mapped = "mapped to ASCII by the tokenizer" if model.maps_punctuation else "unknown to the tokenizer, as published"
    return f"""Images are turned as their EXIF tag says, made RGB (transparent pixels become white, 16 bits are scaled
to 8), resized to a square without a crop, and normalised with CLIP's mean and deviation. Without
`trust_remote_code=True` the image processor is CLIP's, which does the same for pictures that are upright, RGB and of 8
bits. Texts are cut at {model.config.text.text_length} tokens; Chinese quotation marks, ellipsis and dash are {mapped}.
Names of special tokens in a text, such as [SEP], are text."""


def _evaluation(figures: Mapping[str, float]) -> str:
    """A table of the figures of the run that made the weights."""
    if not figures:
        return NOT_MEASURED
    named = ((name.partition("/"), value) for name, value in figures.items())
    rows = (f"| {split} | {figure.replace('/', ' ')} | {value:.1f} |" for (split, _, figure), value in named)
    return MEASURED + "\n".join(rows)


def _failings(model: Model) -> Iterator[str]:
    """What follows from how such a model is built and trained, so that it holds for every one."""
    side, length = model.config.image.image_size, model.config.text.text_length
    yield (
        "The cosine compares one vector of each side. Captions with the same words about the same things, of which "
        "another has the colour or stands on the left, are confused more often than others."
    )
    if model.config.cross.layers:
        yield (
            "The match reads only what the cosine has found: what is not among the candidates is lost. It is trained "
            "against hard negatives, so it orders candidates, and is no calibrated probability."
        )
    yield f"A picture becomes {side} x {side} pixels: small things vanish, and long pictures are squeezed."
    yield f"What follows after {length} tokens is not read; characters that the vocabulary lacks are all one to it."
    yield "Other languages than Chinese are read only as far as their letters are in the vocabulary."
    yield (
        "Prejudices of the captions that it was trained on, about people above all, are in the weights. They were not "
        "measured."
    )


def _bulleted(lines: Iterator[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
