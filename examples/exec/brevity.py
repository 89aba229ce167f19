"""The smallest metric: how short an answer is. `command: [python3, examples/exec/brevity.py]`"""

from bridge import serve

LONGEST = 200


def brevity(item):
    words = len(item["output"].split())
    return {"score": max(0.0, 1 - words / LONGEST), "raw": words, "reason": f"{words} words"}


if __name__ == "__main__":
    serve(brevity, name="brevity", version="1")
