"""Make a backup set worse: a copy of one, damaged, and with checksums that fit the damage if asked to.

    craft.py SET COPY [--flip FILE]... [--one-user-more] [--without-a-cover] [--sums]
"""
import argparse
import gzip
import hashlib
import io
import json
import pathlib
import shutil
import tarfile


def flip(path):
    """Flip one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def without_a_cover(path):
    """Leave the first cover out of an archive; return the archive's new facts and the cover's name."""
    output, left_out = io.BytesIO(), None
    with tarfile.open(path) as source, tarfile.open(fileobj=output, mode="w") as target:
        for member in source:
            if member.isfile() and "/covers/" in member.name and not left_out:
                left_out = member.name
                continue
            target.addfile(member, source.extractfile(member) if member.isfile() else None)
        members = len(target.getmembers())
    path.write_bytes(gzip.compress(output.getvalue(), 1))
    return dict(members=members, bytes_in=len(output.getvalue())), left_out


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("set", type=pathlib.Path)
    parser.add_argument("copy", type=pathlib.Path)
    parser.add_argument("--flip", action="append", default=[])
    parser.add_argument("--one-user-more", action="store_true")
    parser.add_argument("--without-a-cover", action="store_true")
    parser.add_argument("--sums", action="store_true")
    options = parser.parse_args()
    shutil.copytree(options.set, options.copy, ignore=shutil.ignore_patterns("proof.json"))
    manifest = json.loads((options.copy / "manifest.json").read_text())
    manifest["id"] = options.copy.name
    for name in options.flip:
        flip(options.copy / name)
    if options.one_user_more:
        manifest["tables"]["public.users"] += 1
    for artifact in manifest["artifacts"]:
        path = options.copy / artifact["file"]
        if options.without_a_cover and artifact["component"] == "uploads":
            facts, left_out = without_a_cover(path)
            artifact.update(facts)
            print(left_out)
        if options.sums:
            artifact.update(sha256=hashlib.sha256(path.read_bytes()).hexdigest(), bytes_out=path.stat().st_size)
    (options.copy / "manifest.json").write_text(json.dumps(manifest))
    lines = []
    for line in (options.copy / "SHA256SUMS").read_text().splitlines():
        old, name = line.split(None, 1)
        new = hashlib.sha256((options.copy / name).read_bytes()).hexdigest()
        lines.append("%s  %s\n" % (new if options.sums or name == "manifest.json" else old, name))
    (options.copy / "SHA256SUMS").write_text("".join(lines))


if __name__ == "__main__":
    main()
