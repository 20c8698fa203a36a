"""Loaders with the sizes of small models."""


def make_loader(
    mixture, index=0, count=1, *, image_size=16, num_frames=4, num_visual_tokens=3, resize="stretch", **settings
):
    """A loader of host `index` of `count`; `settings` are those of `LoaderConfig`."""
    from vadapter.data.order.config import LoaderConfig
    from vadapter.data.order.loader import Loader
    from vadapter.data.rows.sizes import Sizes

    return Loader(
        LoaderConfig(mixture, **settings), Sizes(image_size, num_frames, num_visual_tokens, resize), index, count
    )
