"""Ragas' faithfulness on assayd's items: whether the answer rests on its context.

    pip install -r examples/exec/requirements-ragas.txt
    command: [python3, examples/exec/ragas_metrics.py]
    env: { OPENAI_API_KEY: "env:OPENAI_API_KEY" }    # and OPENAI_BASE_URL, MODEL where they are not OpenAI's
"""

import os

os.environ.setdefault("RAGAS_DO_NOT_TRACK", "true")

import ragas
from openai import AsyncOpenAI
from ragas.llms import llm_factory
from ragas.metrics.collections import Faithfulness

from bridge import serve

MODEL = os.environ.get("MODEL", "gpt-4o-mini")


def judge(item):
    if not item["context"]:
        return {"not_applicable": "the case has no context"}
    # A client belongs to the event loop of one call.
    metric = Faithfulness(llm=llm_factory(MODEL, client=AsyncOpenAI()))
    result = metric.score(user_input=item["input"], response=item["output"], retrieved_contexts=[item["context"]])
    return {"score": float(result.value), "reason": result.reason or ""}


if __name__ == "__main__":
    serve(judge, name="ragas.faithfulness", version=ragas.__version__)
