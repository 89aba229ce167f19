"""DeepEval's metrics on assayd's items: two scores an item, METRIC.answer_relevancy and METRIC.helpful.

    pip install -r examples/exec/requirements-deepeval.txt
    command: [python3, examples/exec/deepeval_metrics.py]
    env: { OPENAI_API_KEY: "env:OPENAI_API_KEY" }    # and OPENAI_BASE_URL, MODEL where they are not OpenAI's
"""

import os

os.environ.setdefault("DEEPEVAL_TELEMETRY_OPT_OUT", "YES")

import deepeval
from deepeval.metrics import AnswerRelevancyMetric, GEval
from deepeval.models import GPTModel
from deepeval.test_case import LLMTestCase, SingleTurnParams

from bridge import serve

MODEL = GPTModel(
    model=os.environ.get("MODEL", "gpt-4o-mini"),
    base_url=os.environ.get("OPENAI_BASE_URL"),
    api_key=os.environ["OPENAI_API_KEY"],
)


def metrics():
    """New ones for each item: they keep what they found."""
    yield "answer_relevancy", AnswerRelevancyMetric(model=MODEL, async_mode=False)
    yield "helpful", GEval(
        name="helpful",
        evaluation_steps=["Rate how well the actual output helps with what the input asks for."],
        evaluation_params=[SingleTurnParams.INPUT, SingleTurnParams.ACTUAL_OUTPUT],
        model=MODEL,
        async_mode=False,
    )


def measured(name, metric, case):
    try:
        score = metric.measure(case, _show_indicator=False)
    except Exception as error:
        return {"name": name, "error": f"{type(error).__name__}: {error}"}
    return {"name": name, "score": score, "passed": metric.is_successful(), "reason": metric.reason}


def judge(item):
    case = LLMTestCase(
        input=item["input"],
        actual_output=item["output"],
        expected_output=item["expected"] or None,
        retrieval_context=[item["context"]] if item["context"] else None,
    )
    return [measured(name, metric, case) for name, metric in metrics()]


if __name__ == "__main__":
    serve(judge, name="deepeval", version=deepeval.__version__)
