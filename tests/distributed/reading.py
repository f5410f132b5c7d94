"""`python reading.py STORE`: reads a whole store as a training would, and prints what that did to its own memory."""

import json
import re
import sys
from pathlib import Path

from distill import distributed
from distill.responses import TeacherResponses


def memory(shards: str) -> dict[str, int]:
    """Bytes that are this process's own, and of the store's shards the bytes mapped, present and own."""
    status = Path("/proc/self/status").read_text()
    own = int(re.search(r"RssAnon:\s+(\d+) kB", status)[1]) * 1024
    found = {"own": own, "mapped": 0, "present": 0, "copied": 0}
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            inside = shards in line
            assert not inside or line.split()[1] == "r--s", line  # shared, and read only
        elif inside:
            name, _, rest = line.partition(":")
            key = {"Size": "mapped", "Rss": "present", "Anonymous": "copied"}.get(name)
            if key:
                found[key] += int(rest.split()[0]) * 1024
    return found


if __name__ == "__main__":
    world = distributed.join()
    store = TeacherResponses(Path(sys.argv[1]))
    before = memory("shard-")
    letters = sum(len(store[number].text) for number in range(len(store)))
    world.wait()  # all have read all of it, and hold it
    after = memory("shard-")
    told = world.gather({**after, "grown": after["own"] - before["own"], "letters": letters})
    if world.leads:
        print(json.dumps(told))
    world.leave(0)
