"""Terms of pre-training: one file each; a method is made of some of them."""

from collections.abc import Mapping

from adaptmed.pretraining.method import Term
from adaptmed.pretraining.terms.contrastive import Contrastive
from adaptmed.pretraining.terms.image_features import ImageFeatures
from adaptmed.pretraining.terms.matching import Matching
from adaptmed.pretraining.terms.patches import HiddenPatches
from adaptmed.pretraining.terms.text_features import TextFeatures
from adaptmed.pretraining.terms.words import HiddenWords

TERMS: Mapping[str, type[Term]] = {
    term.name: term for term in (Contrastive, Matching, HiddenWords, HiddenPatches, ImageFeatures, TextFeatures)
}
"""Name of a term → its class, in the order in which a step computes losses."""
