"""age.py ROOT ID DAYS...: copies of a set, by hard links, as it would be had it been made some days earlier.

The manifest gets the id and the times, SHA256SUMS the manifest's new sum. Prints the ids.
"""

import calendar
import hashlib
import json
import os
import pathlib
import subprocess
import sys
import time

ID = "backup_%Y-%m-%d_%H-%M-%S"
STAMP = "%Y-%m-%dT%H:%M:%SZ"

root, name = pathlib.Path(sys.argv[1]), sys.argv[2]
made = calendar.timegm(time.strptime(name, ID))
for days in map(int, sys.argv[3:]):
    then = time.gmtime(made - days * 86400)
    folder = root / time.strftime(ID, then)
    subprocess.check_call(["cp", "--archive", "--link", str(root / name), str(folder)])
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest.update(id=folder.name, times=dict.fromkeys(manifest["times"], time.strftime(STAMP, then)))
    text = json.dumps(manifest)
    sums = (folder / "SHA256SUMS").read_text().splitlines()
    sums = [line for line in sums if not line.endswith("manifest.json")]
    sums.append("%s  manifest.json" % hashlib.sha256(text.encode()).hexdigest())
    for file, content in (("manifest.json", text), ("SHA256SUMS", "\n".join(sums) + "\n")):
        os.unlink(str(folder / file))
        (folder / file).write_text(content)
        os.chmod(str(folder / file), 0o600)
    print(folder.name)
