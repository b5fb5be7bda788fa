"""What a node says of itself: operator, module path, source line, weights."""

from models import (
    POSITIVES,
    Attention,
    mul_after,
)
from torch import nn

import attnpass


def test_names_survive_modules_that_look_like_containers():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.my_modules = nn.ModuleList([Attention(mul_after)])

        def forward(self, x):
            return self.my_modules[0](x)

    (x,) = POSITIVES[0].inputs()
    (site,) = attnpass.find_sites(Model().eval(), x).sites
    assert site.name == "my_modules.0"
