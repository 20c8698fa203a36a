"""vadapter's ViT as a model of big_vision: wherever its own `vit` is, under the same names of parameters."""

from typing import Any

from big_vision.models import vit
from flax import linen as nn

from vadapter.base.array_types import Array, Float
from vadapter.base.errors import UserError
from vadapter.contrib.big_vision.pixels import from_unit
from vadapter.models.vit import ViT, ViTConfig

_POOLS = ("gap", "none")


def Model(  # noqa: N802  big_vision's name
    num_classes: int | None = None,
    *,
    image_size: int,
    variant: str | None = None,
    pool_type: str = "gap",
    name: str | None = None,
    **fields: Any,
) -> nn.Module:
    """Returns the model.

    Args:
        num_classes: outputs of the head; None has none.
        image_size: pixels of each side.
        variant: a size of big_vision, such as `B/16`.
        pool_type: `gap`, the mean of the patches; or `none`, all of them, as PaliGemma reads them.
        name: of the module, which a model around it gives.
        **fields: of `ViTConfig`, over those of the variant; `patch_size` may be a pair, and `scan` is always on.

    Raises:
        UserError: pooling that vadapter's ViT does not have, or as `ViTConfig`.
    """
    if pool_type not in _POOLS:
        raise UserError(f"pool_type is {pool_type!r}; vadapter's ViT has {' and '.join(_POOLS)}. Use big_vision's own.")
    settings = {**vit.decode_variant(variant), "dtype": fields.pop("dtype_mm", "float32"), **fields}
    settings.pop("scan", None)
    size = settings.get("patch_size", 16)
    settings["patch_size"] = size if isinstance(size, int) else size[0]
    return BigVisionViT(ViTConfig(image_size=image_size, **settings), num_classes, pool_type, name=name)


class BigVisionViT(ViT):
    """vadapter's ViT with the call of `big_vision.models.vit`."""

    num_classes: int | None = None
    pool_type: str = "gap"

    @nn.compact
    def __call__(self, image: Array, *, train: bool = False) -> tuple[Float[Array, "..."], dict[str, Array]]:
        """Returns scores (or what they would be made of), and more by name.

        Args:
            image: `[B, h, w, 3]`: bytes, or floats in -1..1.
            train: not read: nothing is dropped out.
        """
        del train
        with nn.logical_axis_rules(()):  # big_vision's rules do not know our axes
            encoded = super().__call__(from_unit(image))
        grid = encoded.reshape(len(encoded), self.config.grid, self.config.grid, -1)
        x = encoded.mean(axis=1) if self.pool_type == "gap" else encoded
        out = {"encoded": encoded, "head_input": x, "pre_logits": x, "pre_logits_2d": grid}
        if self.num_classes:
            head = nn.Dense(self.num_classes, name="head", kernel_init=nn.initializers.zeros)
            out["logits_2d"] = head(grid)
            x = out["logits"] = head(x)
        return x, out


def load(init_params: Any, init_file: Any, model_cfg: Any, dont_load: Any = ()) -> Any:
    """Loads what big_vision's own `vit` loads: files old and new, other image sizes, names of papers."""
    del model_cfg
    return vit.load(init_params, init_file, {"scan": True}, dont_load)
