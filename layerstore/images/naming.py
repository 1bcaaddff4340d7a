"""Names of images: tag, and rmi, which forgets names and the images that have none left.

Removing an image frees no chunk by itself: other images may hold it. What nobody holds is freed by `prune`, and until
then loading the same bytes again makes use of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from layerstore.errors import FailedPrecondition, InvalidArgument, NotFound
from layerstore.images.lookup import find_target, manifests_of, names_by_target
from layerstore.reference import parse_reference

if TYPE_CHECKING:
    from collections.abc import Sequence

    from layerstore.digest import Digest
    from layerstore.store.store import Store

__all__ = ["RemoveReport", "name_in", "plan_removal", "remove_image", "tag_image"]


@dataclass(frozen=True, slots=True)
class RemoveReport:
    """What `remove_image` did: names forgotten, and manifests of images that are gone with them."""

    untagged: tuple[str, ...]
    deleted: tuple[Digest, ...]


def tag_image(store: Store, source: str, name: str) -> str:
    """Give an image one more name (taking it from another image, as Docker does); returns the full name.

    Raises: NotFound: `source`. InvalidArgument: `name` is no name, or has a digest.
    """
    reference = parse_reference(name)
    if reference.digest is not None:
        raise InvalidArgument(f"{name} has a digest; a name to give has only a tag")
    target = find_target(store, source)
    with store.write() as txn:
        named = any(digest == target for _, digest in store.catalog.refs(txn))
        if not named and store.catalog.image(txn, target) is None:
            raise NotFound(f"{source} was removed meanwhile")
        store.catalog.put_ref(txn, str(reference), target)
    return str(reference)


def remove_image(store: Store, text: str, *, force: bool = False) -> RemoveReport:
    """Forget a name; with its last name the image itself. By ID: all its names at once.

    Raises:
        NotFound: no such image.
        FailedPrecondition: an ID that several names point to, without `force`.
    """
    while (report := _try_remove(store, text, force=force)) is None:
        pass  # names changed between the look and the change
    return report


def plan_removal(
    store: Store, text: str, target: Digest, before: dict[Digest, list[str]], *, force: bool
) -> RemoveReport:
    """What goes when `text`, which is `target`, is removed and these are all names by target. Changes nothing.

    Raises: as `remove_image`.
    """
    names = before.get(target, [])
    named = name_in(text, names)
    untagged = [named] if named else names
    if not named and len(names) > 1 and not force:
        raise FailedPrecondition(
            f"{text} has {len(names)} names ({', '.join(names[:3])}…); remove them one by one, or force"
        )
    goes = set(untagged) == set(names)
    doomed = _only_behind(store, target, before) if goes else []
    return RemoveReport(tuple(untagged), tuple(doomed))


def name_in(text: str, names: Sequence[str]) -> str | None:
    """The full name that `text` is, if it is one of these."""
    try:
        full = str(parse_reference(text))
    except InvalidArgument:
        return None
    return full if full in names else None


def _try_remove(store: Store, text: str, *, force: bool) -> RemoveReport | None:
    target = find_target(store, text)
    before = names_by_target(store)
    plan = plan_removal(store, text, target, before, force=force)
    with store.write() as txn:
        # Not only the names of this target: a new index may hold an image that is about to go.
        if sorted(store.catalog.refs(txn)) != sorted((n, t) for t in before for n in before[t]):
            return None
        for name in plan.untagged:
            store.catalog.delete_ref(txn, name)
        for digest in plan.deleted:
            store.catalog.delete_image(txn, digest)
    return plan


def _only_behind(store: Store, target: Digest, names: dict[Digest, list[str]]) -> list[Digest]:
    """Images that only this target reaches."""
    held: set[Digest] = set()
    for other in names:
        if other != target:
            held |= manifests_of(store, other).keys()
    found = [digest for digest in manifests_of(store, target) if digest not in held]
    if not found and not held:
        raise NotFound(f"{target} has no image in this store")
    return found
