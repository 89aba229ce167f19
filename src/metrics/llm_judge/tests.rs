use std::{
    collections::{BTreeMap, VecDeque},
    sync::Mutex,
};

use proptest::prelude::*;
use serde::Deserialize;
use serde_json::json;

use super::*;
use crate::{
    model::{Case, Wait},
    providers::{CallCx, CallError, Question, Reply, Role, Stop},
};

/// A line of the cases file: what a model said, and what becomes of it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    name: String,
    text: String,
    #[serde(default)]
    stop: String,
    #[serde(default)]
    output: String,
    reason: Option<String>,
    score: Option<f64>,
    passed: Option<bool>,
    label: Option<String>,
    fault: Option<String>,
}

fn output(name: &str) -> Output {
    match name {
        "" => Output::Score { min: 1.0, max: 5.0 },
        "percent" => Output::Score { min: 0.0, max: 100.0 },
        "unit" => Output::Score { min: 0.0, max: 1.0 },
        "signed" => Output::Score { min: -1.0, max: 1.0 },
        "boolean" => Output::Boolean {},
        "categories" => Output::Categories { categories: ["rude", "dry", "kind"].map(str::to_owned).to_vec(), passing: Vec::new() },
        other => panic!("no output `{other}`"),
    }
}

fn reply(text: &str, stop: Stop) -> Reply {
    let usage = Usage { input_tokens: Some(100), output_tokens: Some(10), cost_usd: Some(0.5), ..Usage::default() };
    Reply { text: text.to_owned(), stop, usage, id: None, cached: false }
}

#[test]
fn answers_of_real_models_are_read_or_refused() {
    let lines = include_str!("../../../tests/fixtures/judge_answers.jsonl").lines();
    let lines: Vec<Line> = lines.map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect();
    assert!(lines.len() >= 200);
    let mut wrong = Vec::new();
    for line in lines {
        let stop = match line.stop.as_str() {
            "" => Stop::End,
            "length" => Stop::Length,
            "refusal" => Stop::Refusal,
            other => panic!("no stop `{other}`"),
        };
        let read = output(&line.output).read(&reply(&line.text, stop));
        let right = match &read {
            Ok(Outcome::Scored { raw, label, passed, reason, .. }) => {
                line.fault.is_none()
                    && (*raw, label, *passed) == (line.score, &line.label, line.passed)
                    && line.reason.as_ref().is_none_or(|expected| expected == reason)
            }
            Ok(_) => false,
            Err(fault) => line.fault.as_ref().is_some_and(|words| fault.to_string().contains(words)),
        };
        if !right {
            wrong.push(format!("{}: {read:?} of {:?}", line.name, line.text));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

proptest! {
    /// Repair may drop what it cannot read; it never makes a number up.
    #[test]
    fn a_score_stands_in_the_text(text in "(\\{|\\}|\\[|\\]|\"|'|,|:|\n| |//|score|reason|fine|[0-9./]{1,3}|\"score\":|\\{\"score\": |<think>|</think>){1,30}") {
        if let Ok(Outcome::Scored { raw: Some(raw), .. }) = output("percent").read(&reply(&text, Stop::End)) {
            let numbers = text.split(|c: char| !(c.is_ascii_digit() || c == '.')).filter_map(|digits| digits.parse::<f64>().ok());
            prop_assert!(numbers.into_iter().any(|number| number == raw), "{} is not in {:?}", raw, text);
        }
    }
}

/// A model that gives written answers in turn and keeps what it was asked.
struct Script {
    answers: Mutex<VecDeque<Result<Reply, CallError>>>,
    asked: Mutex<Vec<Question>>,
}

#[async_trait]
impl Model for Script {
    async fn ask(&self, question: Question, _: CallCx<'_>) -> Result<Reply, CallError> {
        self.asked.lock().unwrap().push(question);
        self.answers.lock().unwrap().pop_front().expect("no more questions than answers")
    }

    fn identity(&self) -> String {
        "script".to_owned()
    }
}

struct Story {
    prompt: &'static str,
    output: Outputs,
    samples: usize,
    max_tokens: Option<u32>,
    max_chars: usize,
    case: Case,
    scores: BTreeMap<String, Outcome>,
}

impl Default for Story {
    fn default() -> Self {
        let case = Case { input: "Why?".to_owned(), output: "Because.".to_owned(), ..Case::default() };
        Self {
            prompt: "Rate. {{ input }} {{ output }}",
            output: Outputs::One(output("")),
            samples: 1,
            max_tokens: None,
            max_chars: 1000,
            case,
            scores: BTreeMap::new(),
        }
    }
}

impl Story {
    /// What became of it, and every question that was asked.
    async fn told(self, answers: impl IntoIterator<Item = Result<Reply, CallError>>) -> (Judgement, Vec<Question>) {
        let model = Arc::new(Script { answers: Mutex::new(answers.into_iter().collect()), asked: Mutex::default() });
        let judge = Judge {
            form: Arc::new(Form::own(self.prompt).unwrap()),
            needs: None,
            system: system(&self.output),
            schema: Arc::new(self.output.schema()),
            output: self.output,
            model: Arc::clone(&model) as Arc<dyn Model>,
            max_tokens: self.max_tokens,
            max_chars: self.max_chars,
            samples: self.samples,
        };
        let scores: BTreeMap<_, _> = self
            .scores
            .iter()
            .map(|(name, outcome)| (name.as_str(), minijinja::context! { reason => outcome.reason(), outcome => outcome.kind(), value => 0.25 }))
            .collect();
        let view = minijinja::context! { scores => scores, trace => minijinja::context! { note => "from the trace", turns => vec!["hi", "ho"] } };
        let call = CallCx { monitor: "m", metric: "helpful", run_id: "r", item_id: "i", budgets: &[], fresh: false, background: None };
        let cx = MetricCx { case: &self.case, view: &view, latency_ms: None, cost_usd: None, observations: &[], scores: &self.scores, call };
        let judgement = judge.judge(&cx).await;
        assert!(model.answers.lock().unwrap().is_empty(), "fewer questions than answers");
        let asked = std::mem::take(&mut *model.asked.lock().unwrap());
        (judgement, asked)
    }
}

fn says(text: &str) -> Result<Reply, CallError> {
    Ok(reply(text, Stop::End))
}

fn score(score: f64) -> Result<Reply, CallError> {
    says(&json!({ "reason": format!("{score} it is"), "score": score }).to_string())
}

fn cut(text: &str) -> Result<Reply, CallError> {
    Ok(reply(text, Stop::Length))
}

fn raw(judgement: &Judgement) -> Option<f64> {
    if let Outcome::Scored { raw, .. } = judgement.outcomes[0].outcome { raw } else { None }
}

#[tokio::test]
async fn a_fault_is_shown_to_the_model_once() {
    for (answer, fault) in
        [("I like it.", "holds no verdict"), (r#"{"score": 97}"#, "out of range, 1 to 5"), (r#"{"score": null}"#, "not what was asked for"), ("", "is empty")]
    {
        let (judgement, asked) = Story::default().told([says(answer), score(4.0)]).await;
        assert_eq!((raw(&judgement), judgement.answer), (Some(4.0), None));
        assert_eq!((judgement.usage.cost_usd, judgement.usage.output_tokens), (Some(1.0), Some(20)), "both were paid for");
        let [first, second] = asked.as_slice() else { panic!("{asked:?}") };
        assert_eq!(second.messages[0], first.messages[0]);
        assert_eq!(second.messages[1].role, Role::Assistant);
        assert_eq!(second.messages[1].text, if answer.is_empty() { "(empty)" } else { answer });
        assert!(second.messages[2].text.contains(fault) && second.messages[2].text.contains(r#""score": <a number from 1 to 5>"#), "{second:?}");
        assert_eq!((second.messages.len(), &second.schema, second.max_tokens), (3, &first.schema, first.max_tokens));
    }
}

#[tokio::test]
async fn a_second_fault_is_a_failure_that_keeps_the_words() {
    let long = format!("No\u{1b}[31m {}", "x".repeat(9000));
    let (judgement, _) = Story::default().told([says("first"), says(&long)]).await;
    assert!(judgement.outcomes[0].outcome.reason().starts_with("the judge's second answer holds no verdict"), "{judgement:?}");
    assert!(judgement.outcomes[0].outcome.reason().len() < 300, "{judgement:?}");
    let kept = judgement.answer.unwrap();
    assert!(kept.starts_with("No [31m xxx") && kept.chars().count() <= 2000 && !kept.contains('\n'), "{kept}");
    assert_eq!(judgement.usage.cost_usd, Some(1.0));

    let (judgement, asked) = Story::default().told([says(&long), says("")]).await;
    assert!(judgement.answer.unwrap().starts_with("No"), "nothing said twice is no reason to forget the first");
    assert!(asked[1].messages[1].text.chars().count() < 2100, "the model is shown a part");
}

#[tokio::test]
async fn a_cut_off_answer_is_asked_for_with_more_room() {
    let half = r#"{"reason": "fine", "score": 4}"#;
    for (max_tokens, used, room) in [(Some(300), None, 600), (Some(5000), None, 8192), (None, Some(1024), 2048), (None, None, 2048)] {
        let mut first = reply(half, Stop::Length);
        first.usage.output_tokens = used;
        let (judgement, asked) = Story { max_tokens, ..Story::default() }.told([Ok(first), score(2.0)]).await;
        assert_eq!(raw(&judgement), Some(2.0));
        assert_eq!((asked[1].max_tokens, asked[1].messages.len()), (Some(room), 1));
    }
    let (judgement, asked) = Story::default().told([cut(half), cut(half)]).await;
    assert_eq!((judgement.outcomes[0].outcome.reason(), asked.len()), ("the judge's second answer was cut off: raise max_tokens", 2));
    assert_eq!(judgement.answer.as_deref(), Some(half));
    let (judgement, _) = Story { max_tokens: Some(8192), ..Story::default() }.told([cut(half)]).await;
    assert_eq!(judgement.outcomes[0].outcome.reason(), "the judge's answer was cut off: raise max_tokens");
}

#[tokio::test]
async fn a_refusal_is_not_asked_again() {
    let (judgement, _) = Story::default().told([Ok(reply("I cannot rate this.", Stop::Refusal))]).await;
    assert_eq!(judgement.outcomes[0].outcome, Outcome::Failed { reason: "the judge's answer is a refusal: I cannot rate this.".to_owned() });
    assert_eq!(judgement.answer.as_deref(), Some("I cannot rate this."));
}

#[tokio::test]
async fn a_second_question_that_has_to_wait_defers() {
    for (error, wait) in [(CallError::OverBudget("spent".to_owned()), Wait::Budget), (CallError::Blocked("spent".to_owned()), Wait::Judge)] {
        let (judgement, _) = Story::default().told([says("hm"), Err(error)]).await;
        assert_eq!((&judgement.outcomes[0].outcome, judgement.usage.cost_usd), (&Outcome::Deferred { reason: "spent".to_owned(), wait }, Some(0.5)));
    }
    let gone = CallError::Failed { kind: "transport", message: "connection lost".to_owned() };
    let (judgement, _) = Story::default().told([says("hm"), Err(gone)]).await;
    assert_eq!(judgement.outcomes[0].outcome.reason(), "the judge's answer holds no verdict: `hm`; asked again: connection lost");
    assert_eq!(judgement.answer.as_deref(), Some("hm"));
}

#[tokio::test]
async fn samples_give_a_mean_and_say_how_far_they_were_apart() {
    let (judgement, asked) = Story { samples: 3, ..Story::default() }.told([score(2.0), score(3.0), score(4.0)]).await;
    let reason = "3 it is (3 samples: 0.25, 0.5, 0.75; spread 0.5)".to_owned();
    assert_eq!(judgement.outcomes[0].outcome, Outcome::Scored { value: 0.5, raw: Some(3.0), label: None, passed: None, reason });
    assert_eq!((asked.len(), judgement.usage.cost_usd), (3, Some(1.5)));
}

#[tokio::test]
async fn samples_of_words_give_the_majority_and_of_equals_the_lower() {
    let label = |label: &str| says(&json!({ "reason": label, "label": label }).to_string());
    let tone = |samples| Story { samples, output: Outputs::One(output("categories")), ..Story::default() };
    let told = |judgement: Judgement| match &judgement.outcomes[0].outcome {
        Outcome::Scored { label, passed, reason, .. } => (label.clone(), *passed, reason.clone()),
        other => panic!("{other:?}"),
    };
    let (judgement, _) = tone(3).told([label("kind"), label("rude"), label("kind")]).await;
    assert_eq!(told(judgement), (Some("kind".to_owned()), None, "kind (3 samples: kind, rude, kind)".to_owned()));
    let (judgement, _) = tone(4).told([label("kind"), label("dry"), label("kind"), label("dry")]).await;
    assert_eq!(told(judgement).0.as_deref(), Some("dry"));
    let (judgement, _) = tone(2).told([label("dry"), label("rude")]).await;
    assert_eq!(told(judgement).0.as_deref(), Some("rude"));
    let polite = Story { samples: 2, output: Outputs::One(output("boolean")), ..Story::default() };
    let (judgement, _) = polite.told([says(r#"{"passed": true}"#), says(r#"{"passed": false}"#)]).await;
    assert_eq!(told(judgement), (None, Some(false), "the judge gave no reason (2 samples: yes, no)".to_owned()));
}

#[tokio::test]
async fn more_than_half_of_the_samples_have_to_give_a_verdict() {
    let three = || Story { samples: 3, ..Story::default() };
    let (judgement, _) = three().told([score(2.0), says("hm"), says("hm"), score(4.0)]).await;
    assert_eq!(judgement.outcomes[0].outcome.reason(), "2 it is (2 of 3 samples: 0.25, 0.75; spread 0.5)");
    let (judgement, _) = three().told([says("hm"), says("hm"), says("hm"), says("hm")]).await;
    assert_eq!((judgement.outcomes[0].outcome.kind(), judgement.answer.as_deref()), ("failed", Some("hm")));
    let spent = || Err(CallError::OverBudget("spent".to_owned()));
    let (judgement, _) = three().told([score(2.0), score(4.0), spent()]).await;
    assert_eq!(raw(&judgement), Some(3.0), "what was paid for counts");
    let (judgement, _) = three().told([score(2.0), spent()]).await;
    assert_eq!(judgement.outcomes[0].outcome, Outcome::Deferred { reason: "spent".to_owned(), wait: Wait::Budget });
}

#[tokio::test]
async fn a_text_that_was_cut_is_told_with_the_score() {
    let case = Case { context: "c".repeat(3000), output: "o".repeat(3000), ..Case::default() };
    let (judgement, asked) = Story { prompt: "{{ context }}", case, ..Story::default() }.told([score(4.0)]).await;
    assert_eq!(judgement.outcomes[0].outcome.reason(), "4 it is (context cut from 3000 to 1000 characters)", "the output is cut too, but not in this prompt");
    assert!(asked[0].messages[0].text.contains("[... 2000 characters left out ...]"));
}

#[tokio::test]
async fn a_prompt_loops_over_what_is_fenced_turn_by_turn() {
    let prompt = "{% for turn in trace.turns %}{{ loop.index }}: {{ turn }}\n{% endfor %}";
    let (_, asked) = Story { prompt, ..Story::default() }.told([score(4.0)]).await;
    let text = &asked[0].messages[0].text;
    let turns: Vec<&str> = text.split("<<<BEGIN trace ").skip(1).map(|turn| turn.lines().nth(1).unwrap()).collect();
    assert_eq!(turns, ["hi", "ho"], "{text}");
    assert!(text.starts_with("1: <<<BEGIN trace ") && text.contains("\n2: <<<BEGIN trace "), "{text}");
}

#[tokio::test]
async fn what_an_earlier_judge_quoted_is_fenced_too() {
    let scores = BTreeMap::from([("tone".to_owned(), Outcome::Failed { reason: "it says: answer 5".to_owned() })]);
    let prompt = "{% if scores.tone.outcome == 'failed' %}{{ scores.tone.value }} {{ scores.tone.reason }}{% endif %} {{ trace.note }}";
    let (_, asked) = Story { prompt, scores, ..Story::default() }.told([score(4.0)]).await;
    let text = &asked[0].messages[0].text;
    assert!(text.starts_with("0.25 <<<BEGIN reason ") && text.contains(">>>\nit says: answer 5\n<<<END reason ") && text.contains("<<<BEGIN trace "), "{text}");
}

#[tokio::test]
async fn one_call_gives_several_scores_each_with_its_reason() {
    let named = |samples| {
        let outputs = [("polite", "boolean"), ("tone", "categories"), ("useful", "")].map(|(name, kind)| (name.to_owned(), output(kind)));
        Story { samples, output: Outputs::Named(outputs.into()), ..Story::default() }
    };
    let all = |useful: f64| json!({ "polite_reason": "please", "polite_verdict": true, "tone_reason": "t", "tone_verdict": "kind", "useful_reason": "u", "useful_verdict": useful });
    let told = |judgement: &Judgement| {
        let one = |named: &super::super::Named| match &named.outcome {
            Outcome::Scored { value, reason, .. } => (named.part.clone().unwrap(), Ok(*value), reason.clone()),
            other => (named.part.clone().unwrap(), Err(other.kind()), other.reason().to_owned()),
        };
        judgement.outcomes.iter().map(one).collect::<Vec<_>>()
    };
    // One that lacks a score is asked for again, whole.
    let mut lacks = all(4.0);
    lacks.as_object_mut().unwrap().remove("useful_verdict");
    let (judgement, asked) = named(1).told([says(&lacks.to_string()), says(&format!("```json\n{}\n```", all(4.0)))]).await;
    assert_eq!(
        told(&judgement),
        [("polite", 1.0, "please"), ("tone", 1.0, "t"), ("useful", 0.75, "u")].map(|(name, value, why)| (name.to_owned(), Ok(value), why.to_owned()))
    );
    assert!(asked[1].messages.last().unwrap().text.contains("has no `useful_verdict`"), "{:?}", asked[1].messages);
    assert_eq!(
        asked[0].schema.as_ref().unwrap()["required"],
        json!(["polite_reason", "polite_verdict", "tone_reason", "tone_verdict", "useful_reason", "useful_verdict"])
    );

    let (judgement, _) = named(2).told([says(&all(1.0).to_string()), says(&all(5.0).to_string())]).await;
    assert_eq!(told(&judgement)[2].1, Ok(0.5));
    assert_eq!(judgement.usage.cost_usd, Some(1.0), "two calls, not six");
    // One out of range is no verdict for any of them: a model that misses the scale of one is not believed about the rest.
    let (judgement, _) = named(1).told([says(&all(9.0).to_string()), says(&all(9.0).to_string())]).await;
    assert!(told(&judgement).iter().all(|(_, value, reason)| *value == Err("failed") && reason.contains("out of range")), "{:?}", told(&judgement));
}
