"""Makes the data set of the colour recipes: about 5,600 emoji pictures of 64x64 in nine classes, on white.

    npm pack emoji-datasource-google@16.0.0 emoji-datasource-twitter@16.0.0 @lobehub/fluent-emoji-3d@1.1.0
    python examples/emoji.py *.tgz --out emoji

The packages hold Google's Noto Emoji (Apache 2.0), Twitter's Twemoji (CC BY 4.0) and Microsoft's Fluent Emoji (MIT).
The classes are the groups of the Unicode standard. Skin tones are left out, because pictures that differ in them alone
are near copies. One emoji in ten, in all three styles, goes to the folder `test`, so no test picture has a twin in
`train`.
"""

from __future__ import annotations

import argparse
import io
import json
import tarfile
import zlib
from pathlib import Path

from PIL import Image

SIZE = 64
STYLES = {
    "emoji-datasource-google": ("noto", "package/img/google/64/", ".png"),
    "emoji-datasource-twitter": ("twemoji", "package/img/twitter/64/", ".png"),
    "fluent-emoji-3d": ("fluent", "package/assets/", ".webp"),
}
LICENCES = """noto: Google Noto Emoji, Apache 2.0
twemoji: Twitter Twemoji, CC BY 4.0
fluent: Microsoft Fluent Emoji, MIT
"""


def _style(archive: Path) -> tuple[str, str, str]:
    for package, style in STYLES.items():
        if package in archive.name:
            return style
    raise SystemExit(f"{archive} is none of the packages {', '.join(STYLES)}")


def groups(archives: list[Path]) -> dict[str, str]:
    """Returns the group of each emoji by its code points, e.g. {"1f600": "smileys-emotion"}."""
    for archive in archives:
        with tarfile.open(archive) as file:
            if "package/emoji.json" in file.getnames():
                table = json.loads(file.extractfile("package/emoji.json").read())  # type: ignore[union-attr]
                return {
                    row["unified"].lower(): row["category"].lower().replace(" & ", "-")
                    for row in table
                    if row["category"] != "Component"
                }
    raise SystemExit("none of the packages holds emoji.json: add emoji-datasource-google")


def on_white(data: bytes) -> Image.Image:
    """Returns a picture of SIZE x SIZE RGB pixels on white."""
    picture = Image.open(io.BytesIO(data)).convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    flat = Image.alpha_composite(white, picture).convert("RGB")
    return flat if flat.size == (SIZE, SIZE) else flat.resize((SIZE, SIZE), Image.Resampling.LANCZOS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("archives", nargs="+", type=Path, help="packages as `npm pack` saves them")
    parser.add_argument("--out", type=Path, required=True, help="new folder")
    options = parser.parse_args()
    if options.out.exists():
        raise SystemExit(f"{options.out} exists: give a new folder")
    table = groups(options.archives)
    counts = {"train": 0, "test": 0}
    for archive in options.archives:
        style, folder, ending = _style(archive)
        with tarfile.open(archive) as file:
            for member in file:
                code = member.name.removeprefix(folder).removesuffix(ending)
                if not member.name.startswith(folder) or code not in table:
                    continue
                split = "test" if zlib.crc32(code.encode()) % 10 == 0 else "train"
                target = options.out / split / table[code] / f"{code}-{style}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                on_white(file.extractfile(member).read()).save(target)  # type: ignore[union-attr]
                counts[split] += 1
    (options.out / "LICENCES.txt").write_text(LICENCES, encoding="utf-8")
    print(f"{options.out}: {counts['train']:,} pictures in train, {counts['test']:,} in test")


if __name__ == "__main__":
    main()
