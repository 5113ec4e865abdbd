"""Image sets, each held as one tensor: shipped (glyphs, emoji), published (mnist, …), or from a folder of your own."""

from pathlib import Path

from companion._arguments import check_instance, check_number, check_size, check_whole, expanded
from companion.data.images import ImageSet

__all__ = ["ImageSet", "load"]


def load(
    name: str | Path,
    split: str = "train",
    *,
    size: int | None = None,
    seed: int = 0,
    image_size: int | None = None,
    test_share: float | None = None,
    fit: str = "crop",
    background: str = "white",
    unreadable: str = "raise",
    cache: bool | str | Path | None = None,
    root: str | Path | None = None,
) -> ImageSet:
    """Load a set of images. A set that is not available raises an error; no other set is given in its place.

    Args:
        name: "glyphs" (digits drawn by the computer, 28×28), "emoji" (pictures in colour, 32×32, see
            ``companion.data.emoji``), "mnist", "fashion-mnist", "cifar10", "celeba", or the path of a folder of images
            (see ``companion.data.folder``).
        split: "train" or "test"; for a folder, its sub-folder of that name if there is one (the classes are then those
            of its sub-folder train).
        size: how many images. Glyphs are generated, 10,000 by default. Of any other set, all images are kept by
            default; with ``size``, that many are drawn with ``seed`` and kept in the order of the set.
        seed: of the random numbers; those of glyphs depend on ``split`` too.
        image_size: crop each image to its middle square and resize it to this side. By default images keep their size,
            except those of celeba (64). Emoji are not resized: 16, 64 and 128 are read from a file that a command makes
            from the font.
        test_share: which share of each class of a folder is its split "test", where the folder is not divided into
            train/ and test/: 0.1, for example. The files are drawn by their names, the same in every call, so that
            "train" and "test" of one share have none in common.
        fit: how images of a folder come to ``image_size``: "crop" to the middle square; "resize", which changes their
            proportions; or "pad" to a square, with ``background`` around them.
        background: of a folder's images, a colour as pillow names it ("white", "#808080"): transparent ones are laid on
            it.
        unreadable: "raise" an error on the first file of a folder that cannot be read, or "skip" such files, which are
            named in a warning.
        cache: where the images of a folder are held. False: in memory. True, or the path of a folder for such files: in
            a file, of which only the rows in use are read (see ``companion.data.cache``). By default in memory up to a
            GiB, and else in a file.
        root: the folder of published sets, where they are looked for and downloaded to, of emoji in other sizes, and of
            caches; default: the environment variable ``COMPANION_DATA``, or else ``companion`` in the user's cache
            folder.

    Shapes:
        → ``ImageSet`` with images (N, C, H, W) uint8 and labels (N,) int64.

    Raises:
        ValueError: an argument is wrong, or a file is damaged; the message names it.
        FileNotFoundError: a published set is missing and cannot be downloaded, or emoji of that size were not made.
        PermissionError: a published set has to be extracted into a folder that cannot be written to.
        OSError: a cache cannot be written.
        ImportError: torchvision or pillow is missing (glyphs need neither, emoji pillow only).
    """
    # Imported here, so that ``python -m companion.data.glyphs`` finds its module not yet loaded.
    from companion.data import emoji, folder, glyphs, pictures, real

    if size is not None:
        check_size("size", size)
    check_whole("seed", seed, least=0)
    for argument, value, kinds, want in (
        ("name", name, (str, Path), "a string or a path"),
        ("split", split, (str,), "a string"),
        ("root", root, (str, Path, type(None)), "a string or a path"),
        ("cache", cache, (bool, str, Path, type(None)), "True, False, a path or None"),
    ):
        check_instance(argument, value, kinds, want)
    reading = pictures.Reading(image_size, fit, background, unreadable)
    built_in = ("glyphs", "emoji")
    published = name in (*built_in, *real.NAMES)
    if published and split not in ("train", "test"):
        raise ValueError(f"split: got {split!r}, want 'train' or 'test', which {name} has")
    if test_share is not None:
        check_number("test_share", test_share, above=0, below=1)
    usual = {"test_share": None, "fit": "crop", "background": "white", "unreadable": "raise", "cache": None}
    given = {"test_share": test_share, "fit": fit, "background": background, "unreadable": unreadable, "cache": cache}
    if published and (other := [argument for argument in usual if given[argument] != usual[argument]]):
        raise ValueError(
            f"{other[0]}: got {given[other[0]]!r}, want {usual[other[0]]!r} for {name}: it is for folders of your own"
        )
    if name == "glyphs":
        if image_size not in (None, glyphs.SIZE):
            raise ValueError(f"image_size: got {image_size}, want {glyphs.SIZE}, the size of glyphs, or none")
        return glyphs.glyphs(split, size=10_000 if size is None else size, seed=seed)
    if name == "emoji":
        return emoji.emoji(split, size=size, seed=seed, image_size=image_size, root=root)
    if published:
        return real.real(str(name), split, size=size, seed=seed, image_size=image_size, root=root)
    folder_path = expanded("name", name)
    if name == "" or not folder_path.is_dir():  # Path("") is the working directory
        names = ", ".join((*built_in, *real.NAMES))
        raise ValueError(f"name: got {str(name)!r}, want one of {names}, or the path of a folder of images")
    place = expanded("cache", cache) if isinstance(cache, str | Path) else cache
    return folder.folder(
        folder_path, split, size=size, seed=seed, test_share=test_share, reading=reading, cache=place, root=root
    )
