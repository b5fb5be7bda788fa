"""The fused encoder layer, opened, is the attention that training runs."""

from models import (
    POSITIVES,
    Encoder,
)
from models.cases import spelled

import attnpass


def test_equal_heads_from_the_encoder_fast_path_and_from_training():
    """In evaluation PyTorch runs one opaque operator, in training many."""
    model, inputs = Encoder(), POSITIVES[0].inputs()
    training = attnpass.find_sites(model.train(), *inputs).sites
    evaluated = attnpass.find_sites(model.eval(), *inputs).sites
    assert len(training) == len(evaluated) == 1
    assert spelled(training[0]) == spelled(evaluated[0])
    assert training[0].name == evaluated[0].name
