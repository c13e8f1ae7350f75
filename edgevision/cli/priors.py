"""``edgevision priors``."""

from __future__ import annotations

import argparse

from edgevision.cli.output import image_size, print_json, print_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument("data", metavar="KIND:PATH", help="boxes: coco:instances.json, coco:FOLDER or voc:FOLDER")
    parser.add_argument("--count", type=int, default=9, metavar="K", help="how many (default 9, YOLOv3's; its tiny "
                        "form takes 6)")  # fmt: skip
    parser.add_argument("--size", type=image_size, default=(416, 416), metavar="SIZE", help="input of the detector in "
                        "pixels: SIZE or HEIGHTxWIDTH (default 416)")  # fmt: skip
    parser.add_argument("--split", metavar="NAME", help="of the data: train, test (default: all there is)")
    parser.add_argument("--images", metavar="DIR", help="folder of the pictures of a COCO file")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same priors (default 0)")


def run(options: argparse.Namespace) -> int:
    """Find and print them."""
    from edgevision.detection.priors import find_priors

    found = find_priors(
        options.data,
        count=options.count,
        size=options.size,
        split=options.split,
        images=options.images,
        seed=options.seed,
    )
    if options.json:
        print_json(found.to_dict())
        return 0
    print_table(
        ("width", "height", "of the boxes"),
        [(f"{w:.1f}", f"{h:.1f}", f"{share:.1%}") for (w, h), share in zip(found.sides, found.shares, strict=True)],
    )
    height, width = found.size
    print(
        f"{found.boxes} boxes in {height} × {width} pixels overlap their nearest prior by {found.mean_iou:.3f} (mean "
        f"IoU); the nine of the YOLOv3 paper by {found.coco_mean_iou:.3f}"
    )
    print(f"anchors={found.to_dict()['priors']}")
    return 0
