//! Stories of one gateway with a scripted provider, in paused time.

use std::{
    collections::VecDeque,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use futures_util::{StreamExt, future::join_all};
use tokio::time::Instant;

use super::*;
use crate::providers::{CallCx, CallError, ChatAnswer, ChatRequest, Headroom, Message, Part, Question, Reply, Stop, Tokens};

type Outcome = Result<ChatAnswer, ProviderError>;

/// Answers from a script, then always `then`. Each call takes `takes`.
struct Scripted {
    script: Mutex<VecDeque<Outcome>>,
    then: Outcome,
    takes: Duration,
    calls: AtomicUsize,
    under_way: AtomicUsize,
    peak: AtomicUsize,
    begun: Mutex<Vec<Instant>>,
}

impl Scripted {
    fn new(script: impl IntoIterator<Item = Outcome>, then: Outcome, takes_ms: u64) -> Arc<Self> {
        Arc::new(Self {
            script: Mutex::new(script.into_iter().collect()),
            then,
            takes: Duration::from_millis(takes_ms),
            calls: AtomicUsize::new(0),
            under_way: AtomicUsize::new(0),
            peak: AtomicUsize::new(0),
            begun: Mutex::default(),
        })
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl Provider for Scripted {
    async fn chat(&self, _: &ChatRequest) -> Outcome {
        self.calls.fetch_add(1, Ordering::SeqCst);
        self.begun.lock().unwrap().push(Instant::now());
        let now = self.under_way.fetch_add(1, Ordering::SeqCst) + 1;
        self.peak.fetch_max(now, Ordering::SeqCst);
        let outcome = self.script.lock().unwrap().pop_front().unwrap_or_else(|| self.then.clone());
        tokio::time::sleep(self.takes).await;
        self.under_way.fetch_sub(1, Ordering::SeqCst);
        outcome
    }

    async fn models(&self) -> Result<Vec<String>, ProviderError> {
        Ok(Vec::new())
    }
}

fn fine() -> Outcome {
    let tokens = Tokens { input: Some(1_000), output: Some(100), ..Tokens::default() };
    Ok(ChatAnswer { text: "{}".to_owned(), stop: Stop::End, model: "gpt-4o-mini-2024-07-18".to_owned(), tokens, id: None, headroom: Headroom::default() })
}

fn transient(kind: &'static str, after: Option<u64>) -> Outcome {
    Err(ProviderError::Transient { kind, message: "HTTP 503: busy".to_owned(), retry_after: after.map(Duration::from_secs) })
}

fn refused() -> Outcome {
    Err(ProviderError::Blocked { kind: "auth", message: "key refused: HTTP 401: no".to_owned() })
}

/// A gateway without store, budgets and prices of its own.
fn built<const N: usize, const M: usize>(
    providers: [(String, ProviderSpec); N],
    profiles: [(String, ProfileSpec); M],
    judge_calls: usize,
    retry: Policy,
) -> Gateway {
    Gateway::new(GatewaySpec {
        providers: BTreeMap::from(providers),
        profiles: BTreeMap::from(profiles),
        default: None,
        prices: BTreeMap::new(),
        judge_calls,
        retry,
        budgets: Vec::new(),
        cache: CacheSpec::default(),
        store: None,
        clock: Arc::new(crate::schedule::clock::SystemClock),
    })
    .unwrap()
    .0
}

fn gateway(provider: &Arc<Scripted>, judge_calls: usize, concurrency: Option<usize>) -> Gateway {
    let provider = Arc::clone(provider) as Arc<dyn Provider>;
    let profile = ProfileSpec { provider: "main".to_owned(), model: "gpt-4o-mini".to_owned(), timeout: Some(Duration::from_secs(5)), ..ProfileSpec::default() };
    built(
        [("main".to_owned(), ProviderSpec { provider, origin: String::new(), limits: Limits { concurrency, ..Limits::default() } })],
        [("judge".to_owned(), profile.clone()), ("other".to_owned(), profile)],
        judge_calls,
        Policy::default(),
    )
}

async fn ask(model: &Arc<dyn Model>) -> Result<Reply, CallError> {
    let question = Question { messages: vec![Message::user("How good?")], ..Question::default() };
    model.ask(question, CallCx { monitor: "m", metric: "x", run_id: "r", item_id: "i", budgets: &[], fresh: false, background: None }).await
}

#[tokio::test(start_paused = true)]
async fn a_reply_carries_what_it_used() {
    let provider = Scripted::new([], fine(), 200);
    let judge = gateway(&provider, 4, None).model("judge").unwrap();
    let usage = ask(&judge).await.unwrap().usage;
    assert_eq!((usage.provider.as_deref(), usage.model.as_deref()), (Some("main"), Some("gpt-4o-mini-2024-07-18")));
    assert_eq!((usage.input_tokens, usage.output_tokens, usage.latency_ms), (Some(1_000), Some(100), Some(200)));
    assert!((usage.cost_usd.unwrap() - 0.000_21).abs() < 1e-12);
    assert_eq!(judge.identity(), "main/gpt-4o-mini");
}

#[tokio::test(start_paused = true)]
async fn what_passes_by_is_tried_again_and_the_server_says_when() {
    let provider = Scripted::new([transient("rate_limited", Some(7)), transient("server_error", None)], fine(), 1);
    let judge = gateway(&provider, 4, None).model("judge").unwrap();
    ask(&judge).await.unwrap();
    let begun = provider.begun.lock().unwrap().clone();
    assert_eq!(begun.len(), 3);
    assert!(begun[1] - begun[0] >= Duration::from_secs(7));
}

#[tokio::test(start_paused = true)]
async fn retries_end() {
    let provider = Scripted::new([], transient("overloaded", None), 1);
    let judge = gateway(&provider, 4, None).model("judge").unwrap();
    let Err(CallError::Failed { message, .. }) = ask(&judge).await else { panic!("a failure") };
    assert!(message.starts_with("gave up after 7 attempts") && message.ends_with("HTTP 503: busy"), "{message}");
    assert_eq!(provider.calls(), 7);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_takes_too_long_is_cut_off_and_tried_again() {
    let provider = Scripted::new([], fine(), 6_000);
    let judge = gateway(&provider, 4, None).model("judge").unwrap();
    let Err(CallError::Failed { message, .. }) = ask(&judge).await else { panic!("a failure") };
    assert!(message.ends_with("no answer within 5s"), "{message}");
    assert!(provider.calls() > 1);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_will_not_do_is_sent_once() {
    let provider = Scripted::new([], Err(ProviderError::Rejected { kind: "bad_request", message: "HTTP 400: too long".to_owned() }), 1);
    let judge = gateway(&provider, 4, None).model("judge").unwrap();
    assert!(matches!(ask(&judge).await, Err(CallError::Failed { .. })));
    assert_eq!(provider.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_refused_key_stops_all_calls_until_a_probe_a_minute_later_gets_through() {
    let provider = Scripted::new([refused(), refused()], fine(), 10);
    let gateway = gateway(&provider, 64, None);
    let judge = gateway.model("judge").unwrap();

    let replies = join_all((0..100).map(|_| ask(&judge))).await;
    assert!(replies.iter().all(|reply| matches!(reply, Err(CallError::Blocked(_)))));
    assert_eq!(provider.calls(), 1, "the first call went ahead alone");
    let blocked = gateway.blocked();
    assert_eq!(blocked[0].0, "main/gpt-4o-mini");
    assert!(blocked[0].1.starts_with("blocked since ") && blocked[0].1.ends_with(" UTC: key refused: HTTP 401: no"), "{blocked:?}");

    // Another profile of the same model is blocked with it.
    let other = gateway.model("other").unwrap();
    tokio::time::sleep(Duration::from_secs(58)).await;
    assert!(ask(&other).await.is_err());
    assert_eq!(provider.calls(), 1);

    // A minute later one call tries; it fails, and the next minute begins.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(join_all((0..10).map(|_| ask(&judge))).await.iter().all(Result::is_err));
    assert_eq!(provider.calls(), 2);

    // The key is good again: the probe's success opens the judge to all.
    tokio::time::sleep(Duration::from_secs(61)).await;
    let replies = join_all((0..10).map(|_| ask(&judge))).await;
    assert_eq!(replies.iter().filter(|reply| reply.is_ok()).count(), 1, "the others are refused until the probe is back");
    assert!(gateway.blocked().is_empty());
    assert!(join_all((0..10).map(|_| ask(&judge))).await.iter().all(Result::is_ok));
}

#[tokio::test(start_paused = true)]
async fn a_probe_that_is_cancelled_leaves_its_place_to_the_next() {
    let provider = Scripted::new([refused()], fine(), 10);
    let gateway = gateway(&provider, 64, None);
    let judge = gateway.model("judge").unwrap();
    assert!(ask(&judge).await.is_err());
    tokio::time::sleep(Duration::from_secs(61)).await;
    assert!(tokio::time::timeout(Duration::from_millis(1), ask(&judge)).await.is_err(), "cancelled under way");
    assert!(ask(&judge).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn limits_hold_and_nothing_waits_for_a_retry_in_a_place() {
    let provider = Scripted::new([transient("server_error", None), transient("server_error", None)], fine(), 100);
    let gateway = gateway(&provider, 5, Some(2));
    let judge = gateway.model("judge").unwrap();
    let started = Instant::now();
    let replies = join_all((0..21).map(|_| ask(&judge))).await;
    assert!(replies.iter().all(Result::is_ok));
    assert_eq!(provider.peak.load(Ordering::SeqCst), 2);
    // 23 calls of 100 ms in pairs, and at most one lone retry at the end: the waits between attempts cost no place.
    assert!(started.elapsed() < Duration::from_millis(1_900), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_rate_limit_said_twice_pauses_all_calls_of_the_provider() {
    let provider = Scripted::new((0..2).map(|_| transient("rate_limited", Some(10))), fine(), 10);
    let gateway = gateway(&provider, 1, None);
    let judge = gateway.model("judge").unwrap();
    let replies = join_all((0..50).map(|_| ask(&judge))).await;
    assert!(replies.iter().all(Result::is_ok));
    let begun = provider.begun.lock().unwrap().clone();
    let early = begun.iter().filter(|at| **at - begun[0] < Duration::from_secs(10)).count();
    // Two places: the two that are refused, and at most the two that were let in while the refusals came back. All 50
    // would be early without the pause.
    assert!((2..=4).contains(&early), "no call ran into a limit that was known: {early}");
}

#[tokio::test(start_paused = true)]
async fn a_pause_without_end_is_told_and_not_waited_for() {
    let provider = Scripted::new((0..2).map(|_| transient("rate_limited", Some(3_600))), fine(), 10);
    let judge = gateway(&provider, 2, None).model("judge").unwrap();
    for _ in 0..2 {
        assert!(matches!(ask(&judge).await, Err(CallError::Failed { .. })));
    }
    let Err(CallError::Blocked(message)) = ask(&judge).await else { panic!("a refusal without a call") };
    assert!(message.contains("left alone for"), "{message}");
    assert_eq!(provider.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn names_that_are_not_there_are_told_with_those_that_are() {
    let provider = Scripted::new([], fine(), 1);
    let gateway = gateway(&provider, 2, None);
    assert_eq!(gateway.model("jugde").err().unwrap(), "there is no profile `jugde`; there are `judge`, `other`");
    assert!(gateway.probe("main").await.is_ok());
    assert_eq!(gateway.probe("mian").await.unwrap_err().to_string(), "there is no provider `mian`; there is `main`");
    let lost = GatewaySpec {
        providers: BTreeMap::new(),
        profiles: BTreeMap::from([("judge".to_owned(), ProfileSpec { provider: "x".to_owned(), ..ProfileSpec::default() })]),
        default: None,
        prices: BTreeMap::new(),
        judge_calls: 1,
        retry: Policy::default(),
        budgets: Vec::new(),
        cache: CacheSpec::default(),
        store: None,
        clock: Arc::new(crate::schedule::clock::SystemClock),
    };
    assert_eq!(Gateway::new(lost).err().unwrap().to_string(), "profile `judge`: there is no provider `x`; there are none");
}

/// Two providers, and a profile that falls back from the first to the second.
fn ladder(first: &Arc<Scripted>, second: &Arc<Scripted>, on: Vec<FallbackOn>) -> Gateway {
    let provider =
        |scripted: &Arc<Scripted>| ProviderSpec { provider: Arc::clone(scripted) as Arc<dyn Provider>, origin: String::new(), limits: Limits::default() };
    let profile = |name: &str, fallback: &[&str]| ProfileSpec {
        provider: name.to_owned(),
        model: "gpt-4o-mini".to_owned(),
        fallback: fallback.iter().map(|name| (*name).to_owned()).collect(),
        fallback_on: on.clone(),
        ..ProfileSpec::default()
    };
    built(
        [("first".to_owned(), provider(first)), ("second".to_owned(), provider(second))],
        [("judge".to_owned(), profile("first", &["cheap"])), ("cheap".to_owned(), profile("second", &[]))],
        4,
        Policy { attempts: 2, ..Policy::default() },
    )
}

#[tokio::test(start_paused = true)]
async fn where_a_profile_cannot_answer_its_fallback_does_and_the_reply_says_who() {
    for (broken, on, falls_back) in [
        (refused(), vec![], true),
        (transient("server_error", None), vec![], true),
        (transient("rate_limited", None), vec![FallbackOn::RateLimited], true),
        (transient("rate_limited", None), vec![FallbackOn::Unavailable], false),
        (Err(ProviderError::Rejected { kind: "bad_request", message: "HTTP 400: too long".to_owned() }), vec![], false),
    ] {
        let (first, second) = (Scripted::new([], broken.clone(), 1), Scripted::new([], fine(), 1));
        let judge = ladder(&first, &second, on.clone()).model("judge").unwrap();
        let reply = ask(&judge).await;
        assert_eq!(reply.is_ok(), falls_back, "{broken:?} {on:?}");
        assert_eq!(second.calls(), usize::from(falls_back));
        if let Ok(reply) = reply {
            assert_eq!(reply.usage.provider.as_deref(), Some("second"));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_is_tried_again_until_its_first_part() {
    let provider = Scripted::new([transient("server_error", None)], fine(), 1);
    let gateway = gateway(&provider, 4, None);
    let judge = gateway.model("judge").unwrap();
    let question = Question { messages: vec![Message::user("How good?")], ..Question::default() };
    let parts: Vec<_> =
        judge.stream(question, CallCx { monitor: "m", metric: "x", run_id: "r", item_id: "i", budgets: &[], fresh: false, background: None }).collect().await;
    assert!(matches!(parts.as_slice(), [Ok(Part::Text(text)), Ok(Part::End(reply))] if text == "{}" && reply.text == "{}"), "{parts:?}");
    assert_eq!(provider.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_minute_takes_no_more_than_its_requests() {
    let provider = Scripted::new([], fine(), 1);
    let spec =
        ProfileSpec { provider: "main".to_owned(), model: "m".to_owned(), limits: Limits { rpm: Some(120), ..Limits::default() }, ..ProfileSpec::default() };
    let gateway = built(
        [("main".to_owned(), ProviderSpec { provider: Arc::clone(&provider) as Arc<dyn Provider>, origin: String::new(), limits: Limits::default() })],
        [("judge".to_owned(), spec)],
        64,
        Policy::default(),
    );
    let judge = gateway.model("judge").unwrap();
    let begin = Instant::now();
    let replies = join_all((0..122).map(|_| ask(&judge))).await;
    assert!(replies.iter().all(Result::is_ok));
    // Two at once, and two a second from then on.
    assert_eq!(begin.elapsed().as_secs(), 60);
    assert_eq!(provider.begun.lock().unwrap()[3].duration_since(begin).as_millis() / 100, 10);
}

#[tokio::test(start_paused = true)]
async fn refusals_for_rate_halve_the_calls_under_way_and_answers_bring_them_back() {
    let storm = (0..8).map(|_| transient("overloaded", None));
    let provider = Scripted::new(storm, fine(), 100);
    let judge = gateway(&provider, 64, Some(8)).model("judge").unwrap();
    let replies = join_all((0..60).map(|_| ask(&judge))).await;
    assert!(replies.iter().all(Result::is_ok));
    assert_eq!(provider.peak.load(Ordering::SeqCst), 8, "eight before the storm");
    let begun = provider.begun.lock().unwrap();
    let second_wave = begun.iter().filter(|at| (100..200).contains(&at.duration_since(begun[0]).as_millis())).count();
    assert!(second_wave <= 4, "{second_wave} calls right after the storm");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_may_need_much_holds_up_the_next_only_until_it_is_answered() {
    let lane = Lane::new(Limits { tpm: Some(6_000), ..Limits::default() }, 8);
    let request = |max_tokens: u32| ChatRequest {
        model: "m".to_owned(),
        system: None,
        messages: vec![Message::user("How good?")],
        temperature: None,
        top_p: None,
        stop: Vec::new(),
        max_tokens,
        schema: None,
    };
    let begin = Instant::now();
    let (large, small) = (request(u32::MAX), request(10));
    let cx = |monitor| CallCx { monitor, metric: "x", run_id: "r", item_id: "i", budgets: &[], fresh: false, background: None };
    let first = lane.enter(&cx("a"), &large).await;
    let answer = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        lane.observe(&first, &fine());
    };
    tokio::join!(answer, async { lane.enter(&cx("b"), &small).await });
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
}
