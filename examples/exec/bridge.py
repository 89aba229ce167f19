"""Makes a metric for assayd's `type: exec` of a Python function: an item in, an outcome (or a list of them) out.

An item is a dict: input, output, context, expected, metadata ... An outcome is one too: {"score": 0..1, "reason": ...} and,
where they apply, "name", "passed", "label", "raw"; or {"not_applicable": why}. What the function raises fails the item, which
is tried again later. The protocol is described in docs/metrics.md.
"""

import json
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor


def serve(judge, name, version, workers=8):
    """Answers until assayd closes our input. `workers`: items judged at the same time (`concurrency` of the metric)."""
    out, lock = os.fdopen(os.dup(1), "w"), threading.Lock()
    os.dup2(2, 1)  # what libraries print goes to the log

    def say(message):
        line = json.dumps(message, allow_nan=False)
        with lock:
            print(line, file=out, flush=True)

    def one(message):
        try:
            outcomes = judge(message["item"])
            outcomes = outcomes if isinstance(outcomes, list) else [outcomes]
            say({"id": message["id"], "outcomes": outcomes})
        except Exception as error:
            say({"id": message["id"], "error": f"{type(error).__name__}: {error}"})

    say({"hello": {"name": name, "version": version}})
    with ThreadPoolExecutor(workers) as pool:
        for line in sys.stdin:
            pool.submit(one, json.loads(line))
