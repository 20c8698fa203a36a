"""Plain ViTs of big_vision, trained on labels."""

from vadapter.weights import big_vision_vit
from vadapter.weights.checkpoint import BIG_VISION
from vadapter.weights.family import Family, TensorNames, register

register(
    Family(
        "vit",
        "encoder",
        TensorNames(
            {BIG_VISION: big_vision_vit.PATTERN},
            "a ViT (`embedding/kernel` at the top or in `img/`)",
            only=lambda place: not big_vision_vit.in_pair(place),
        ),
        big_vision_vit.config,
        big_vision_vit.rules,
        big_vision_vit.ignored,
    )
)
