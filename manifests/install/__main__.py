"""Bring the platform up on the cluster that KUBECONFIG names, or repair it.

    python -m manifests.install kind
    python -m manifests.install gpu-cluster --parts "gateway kserve" --third-party folder
    python -m manifests.install kind --list-images

Runs as often as one likes: what is there is brought to what the manifests say, and passwords that
exist stay. It ends when everything runs, or says what does not and why.
"""

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from manifests.install import checks, images, passwords, rendering
from manifests.install.kubectl import InstallError, Kubectl, Object, identity
from manifests.install.waiting import wait_for

PART = "linnet/part"
# What each part takes from others, in the order of need.
PARTS: dict[str, tuple[str, ...]] = {
    "gateway": ("envoy-gateway",),
    "kserve": ("cert-manager", "kserve"),
    "store": (),
    "tracking": (),
    "metrics": (),
    "dashboards": (),
    "pipelines": ("pipelines-cluster", "pipelines"),
    "pipelines-ui": (),
}
MADE_ANEW = [("Job", "linnet-platform", name) for name in ("minio-setup", "postgres-setup")]


def main() -> int:
    """Install, or list images, and return the exit code."""
    given = _arguments().parse_args()
    try:
        parts = chosen_parts(given.parts)
        ours = images.Ours(given.image_prefix, given.image_tag)
        third_party = rendering.ThirdParty(given.third_party)
        if given.list_images:
            found = images.found_in(everything(given.overlay, parts, third_party, ours))
            sys.stdout.write("\n".join([*sorted({*found, *ours.all()}), ""]))
            return 0
        install(given.overlay, parts, third_party, ours, kubectl=Kubectl(given.timeout_s))
    except InstallError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    return 0


def install(
    overlay: str,
    parts: Sequence[str],
    third_party: rendering.ThirdParty,
    ours: images.Ours,
    *,
    kubectl: Kubectl,
) -> None:
    """Apply the parts in order, waiting for each before the next.

    Raises:
        InstallError: the cluster can't be reached, refuses something, or a part does not come up.
    """
    checks.supported(third_party.versions["KSERVE"], "manifests/third-party/versions.env")
    objects = [ours.put_into(one) for one in rendering.overlay(overlay)]
    say(f"cluster {kubectl.address()}: {', '.join(parts)}")
    kubectl.apply([one for one in objects if part_of(one) is None])
    passwords.make(kubectl, parts)
    for part in parts:
        say(part)
        for name in PARTS[part]:
            _bring_up(kubectl, wanted(third_party.render(name), parts))
        if part == "pipelines-ui":
            _bring_up(kubectl, of_part(part, third_party.render("pipelines")))
        _bring_up(kubectl, of_part(part, objects))
    if "gateway" in parts:
        checks.check_gateway(kubectl)
    if "kserve" in parts:
        checks.check_kserve(kubectl)
    say("the platform is up")


def everything(
    overlay: str, parts: Sequence[str], third_party: rendering.ThirdParty, ours: images.Ours
) -> list[Object]:
    """Return every object that an install of these parts applies."""
    found = wanted([ours.put_into(one) for one in rendering.overlay(overlay)], parts)
    for name in (name for part in parts for name in PARTS[part]):
        found += wanted(third_party.render(name), parts)
    return found


def chosen_parts(words: str) -> tuple[str, ...]:
    """Return the named parts in the order of need; none named means all.

    Raises:
        InstallError: there is no such part.
    """
    named = words.split() or [*PARTS]
    if unknown := [name for name in named if name not in PARTS]:
        raise InstallError(f"no part {' or '.join(unknown)}: choose from {' '.join(PARTS)}")
    return tuple(part for part in PARTS if part in named)


def part_of(one: Object) -> str | None:
    """Return the part an object belongs to by its label."""
    label = one["metadata"].get("labels", {}).get(PART)
    return None if label is None else str(label)


def of_part(part: str, objects: Iterable[Object]) -> list[Object]:
    """Return the objects labelled with a part."""
    return [one for one in objects if part_of(one) == part]


def wanted(objects: Iterable[Object], parts: Sequence[str]) -> list[Object]:
    """Return the objects without those of parts that were not chosen."""
    return [one for one in objects if part_of(one) in (None, *parts)]


def say(line: str) -> None:
    """Tell who waits."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _bring_up(kubectl: Kubectl, objects: list[Object]) -> None:
    for one in objects:
        if identity(one) in MADE_ANEW:
            kubectl.delete(one)
    kubectl.apply(passwords.stamped(kubectl, objects))
    wait_for(kubectl, objects)


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overlay", choices=rendering.overlays())
    parser.add_argument("--parts", default="", help=f"some of: {' '.join(PARTS)}")
    parser.add_argument(
        "--third-party", type=Path, help="folder with the files that versions.env names"
    )
    parser.add_argument("--image-prefix", default=os.environ.get("IMAGE_PREFIX", "linnet"))
    parser.add_argument("--image-tag", default=os.environ.get("IMAGE_TAG", "0.1.0"))
    parser.add_argument("--timeout-s", type=int, default=600, help="for each part to come up")
    parser.add_argument("--list-images", action="store_true", help="print the images and stop")
    return parser


if __name__ == "__main__":
    sys.exit(main())
