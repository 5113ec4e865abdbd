"""Image sets, each as one tensor: made (glyphs), published (mnist, …), or your own folder."""

from pathlib import Path

from companion._arguments import check_instance, check_size, check_whole
from companion.data.images import ImageSet

__all__ = ["ImageSet", "load"]


def load(
    name: str | Path,
    split: str = "train",
    *,
    size: int | None = None,
    seed: int = 0,
    image_size: int | None = None,
    root: str | Path | None = None,
) -> ImageSet:
    """Load a set of images; what cannot be had is an error, never other images.

    Args:
        name: ``"glyphs"`` (digits drawn by the computer, 28×28), ``"mnist"``, ``"fashion-mnist"``,
            ``"cifar10"``, ``"celeba"``, or the path of a folder of images (see ``companion.data.folder``).
        split: ``"train"`` or ``"test"``; for a folder, the sub-folder of that name where there is one
            (classes are then those of its sub-folder train).
        size: how many images. Glyphs are made to order, 10,000 where it is not given. Of the other sets all
            are kept, or ``size`` of them, drawn with ``seed``, in the order of the set.
        seed: what the random numbers depend on (together with ``split``, for glyphs).
        image_size: crop each image to its middle square and resize it to this side. Where it is not given,
            images stay as they are, but for celeba (64).
        root: where published sets lie or are downloaded to; default: the environment variable
            ``COMPANION_DATA``, else ``companion`` in the user's cache folder.

    Raises:
        ValueError: a wrong argument; a file that is damaged or does not decode, by name.
        FileNotFoundError: a published set that is neither there nor to be downloaded.
        PermissionError: a published set has to be extracted in a folder that cannot be written to.
        ImportError: torchvision or pillow is missing (glyphs need neither).
    """
    # Imported here, so that ``python -m companion.data.glyphs`` finds its module not yet loaded.
    from companion.data import folder, glyphs, real

    if size is not None:
        check_size("size", size)
    if image_size is not None:
        check_size("image_size", image_size, most=folder.LARGEST_SIDE)
    check_whole("seed", seed, least=0)
    for argument, value, kinds, want in (
        ("name", name, (str, Path), "a string or a path"),
        ("split", split, (str,), "a string"),
        ("root", root, (str, Path, type(None)), "a string or a path"),
    ):
        check_instance(argument, value, kinds, want)
    published = name in ("glyphs", *real.NAMES)
    if published and split not in ("train", "test"):
        raise ValueError(f"split: got {split!r}, want 'train' or 'test', which {name} has")
    if name == "glyphs":
        if image_size not in (None, glyphs.SIZE):
            raise ValueError(f"image_size: got {image_size}, want {glyphs.SIZE}, the size of glyphs, or none")
        return glyphs.glyphs(split, size=10_000 if size is None else size, seed=seed)
    if published:
        return real.real(str(name), split, size=size, seed=seed, image_size=image_size, root=root)
    if name == "" or not Path(name).is_dir():  # Path("") is the working directory
        names = ", ".join(("glyphs", *real.NAMES))
        raise ValueError(f"name: got {str(name)!r}, want one of {names}, or the path of a folder of images")
    return folder.folder(Path(name), split, size=size, seed=seed, image_size=image_size)
