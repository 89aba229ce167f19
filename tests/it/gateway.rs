//! Calls to models: within the budget, by the limits, asked once, told to those who want to know, and open to others.

use std::{
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    build::{judge, langfuse, quick, with},
    site::Site,
    world::Fault,
};

const USD_PER_TOKEN: f64 = 1e-5;

fn priced(site: &mut Site) {
    site.settings["prices"] = json!({ "gpt-4o-mini": { "input_cost_per_token": USD_PER_TOKEN, "output_cost_per_token": USD_PER_TOKEN } });
    site.save();
}

fn budget(usd: f64) -> Value {
    json!({ "evaluation": { "concurrency": 16, "budget": { "usd": usd, "per": "day" } }, "metrics": [with(judge(), json!({ "max_tokens": 20 }))] })
}

#[tokio::test]
async fn a_budget_is_never_overspent_and_what_it_held_back_comes_back() {
    let mut site = Site::new().await;
    priced(&mut site);
    site.world.langfuse.add_some(40);
    site.monitor("m", &with(langfuse(), budget(0.05)));
    let report = site.once("m").await;
    let (scored, deferred) = (report["counts"]["scored"].as_u64().unwrap(), report["counts"]["deferred"].as_u64().unwrap());
    assert_eq!((report["status"].as_str(), scored + deferred), (Some("partial"), 40), "{report}");
    assert!(scored > 0 && deferred > 0 && site.world.llm.bill(USD_PER_TOKEN) <= 0.05, "{report}");
    assert!(report["over_budget"].as_str().unwrap().contains("0.050000 USD per day"), "{report}");
    let alert = report["alerts"].as_array().unwrap().iter().find(|alert| alert["name"] == "budget-spent").unwrap();
    assert_eq!(alert["state"], "firing");
    // More money: the rest is judged, and nothing twice.
    site.monitor("m", &with(langfuse(), budget(5.0)));
    let report = site.once("m").await;
    assert_eq!((report["counts"]["scored"].as_u64(), report["status"].as_str()), (Some(deferred), Some("succeeded")), "{report}");
    assert_eq!((site.world.llm.most_calls(), site.world.langfuse.scored("helpful")), (1, 40));
}

#[tokio::test]
async fn what_all_monitors_may_spend_holds_over_kills() {
    let mut site = Site::new().await;
    priced(&mut site);
    site.settings["budget"] = json!({ "usd": 0.30, "per": "month" });
    site.save();
    site.world.langfuse.add_some(60);
    site.world.llm.faults.latency(Duration::from_millis(60));
    for name in ["m", "n"] {
        site.monitor(
            name,
            &with(quick(), json!({ "source": { "name": name }, "evaluation": { "concurrency": 2 }, "metrics": [with(judge(), json!({ "max_tokens": 20 }))] })),
        );
    }
    for kill in 1..=6 {
        let daemon = site.daemon().await;
        let before = site.world.llm.answered();
        site.wait("some calls, or the end of the money", async || {
            site.world.llm.answered() >= before + kill || site.metric("assayd_items_total", &[("decision", "deferred")]).await > 0.0
        })
        .await;
        daemon.kill9().await;
    }
    let _daemon = site.daemon().await;
    site.wait("the money to be spent", async || site.metric("assayd_items_total", &[("decision", "deferred")]).await > 0.0).await;
    site.more_runs("m", 2).await;
    let bill = site.world.llm.bill(USD_PER_TOKEN);
    assert!(bill > 0.02 && bill <= 0.30, "{bill}");
}

#[tokio::test]
async fn a_budget_needs_a_price_and_says_which() {
    let mut site = Site::new().await;
    site.settings["profiles"]["judge"]["model"] = json!("home-made");
    site.save();
    site.world.langfuse.add_some(2);
    site.monitor("m", &with(langfuse(), budget(1.0)));
    let report = site.once("m").await;
    let reason = report["over_budget"].as_str().unwrap();
    assert!(reason.contains("prices: { home-made: { input_cost_per_token"), "{reason}");
    assert_eq!((site.world.llm.requests(), report["counts"]["deferred"].as_u64()), (0, Some(2)));
}

#[tokio::test]
async fn a_model_that_fails_in_every_way_costs_no_item_and_no_more_than_the_budget() {
    let mut site = Site::new().await;
    priced(&mut site);
    site.settings["profiles"]["judge"]["timeout"] = json!("1s");
    site.settings["retry"] = json!({ "attempts": 6, "max_elapsed": "20s" });
    site.save();
    site.world.langfuse.add_some(60);
    let faults =
        vec![Fault::Status(429), Fault::Status(529), Fault::Status(500), Fault::Html, Fault::Drop, Fault::Cut, Fault::Hang, Fault::NoText, Fault::Huge];
    site.world.llm.faults.shares(faults, 0.2);
    site.monitor("m", &with(langfuse(), budget(5.0)));
    let report = site.once("m").await;
    let rows = site.export(&[]).await;
    assert_eq!(rows.len(), 60, "each item has its one row: {report}");
    assert!(rows.iter().all(|row| row["outcome"] == "scored" || !row["reason"].as_str().unwrap().is_empty()));
    assert!(rows.iter().filter(|row| row["outcome"] == "scored").count() >= 54, "six attempts at one in five, and none at what is too large: {report}");
    // Only an answer that was cut off on its way is paid for again.
    assert!(site.world.llm.most_calls() <= 3 && site.world.llm.bill(USD_PER_TOKEN) <= 5.0);
    let usage = site.run(&["usage", "--by", "monitor", "--format", "json"]).await.expect(0).json();
    assert_eq!((usage[0]["name"].as_str(), usage[0]["calls"].as_u64()), (Some("m"), Some(60)));
}

#[tokio::test]
async fn what_was_never_reached_costs_no_money() {
    let mut site = Site::new().await;
    priced(&mut site);
    let tls_where_there_is_none = site.world.llm.url.replace("http://", "https://");
    let right = site.settings["providers"]["openai"]["base_url"].clone();
    site.settings["retry"] = json!({ "attempts": 2, "max_elapsed": "5s" });
    site.world.langfuse.add_some(1);
    // Enough for one call and no more.
    site.monitor("m", &with(langfuse(), with(budget(0.04), json!({ "evaluation": { "concurrency": 1, "max_attempts": 9 } }))));
    for wrong in ["http://nowhere.invalid/v1", &format!("{tls_where_there_is_none}/v1")] {
        site.settings["providers"]["openai"]["base_url"] = json!(wrong);
        site.save();
        let report = site.once_with("m", &[], 1).await;
        assert!(report["error"].as_str().unwrap().contains("could not connect"), "{report}");
    }
    site.settings["providers"]["openai"]["base_url"] = right;
    site.save();
    assert_eq!(site.once("m").await["counts"]["scored"].as_u64(), Some(1));
}

#[tokio::test]
async fn a_blocked_judge_has_a_stand_in_and_the_score_says_who_judged() {
    let mut site = Site::new().await;
    site.settings["providers"]["openai"]["api_key"] = json!("sk-refused");
    site.settings["profiles"]["judge"]["fallback"] = json!(["judge-a"]);
    site.save();
    site.world.langfuse.add_some(5);
    site.monitor("m", &langfuse());
    let report = site.once("m").await;
    assert_eq!((report["status"].as_str(), report["counts"]["scored"].as_u64()), (Some("succeeded"), Some(5)), "{report}");
    let rows = site.export(&[]).await;
    assert!(rows.iter().all(|row| row["provider"] == "anthropic" && row["model"] == "claude-3-5-haiku-20241022"), "{rows:?}");
}

#[tokio::test]
async fn an_answer_that_is_kept_is_paid_for_once() {
    let mut site = Site::new().await;
    priced(&mut site);
    site.settings["profiles"]["judge"]["cache"] = json!({ "ttl": "24h" });
    site.save();
    site.world.langfuse.add_some(10);
    site.monitor("m", &langfuse());
    site.monitor("n", &with(langfuse(), json!({ "source": { "name": "n" } })));
    site.once("m").await;
    // Another monitor and another process: the same questions.
    let report = site.once("n").await;
    assert_eq!((report["counts"]["scored"].as_u64(), report["cost_usd"].as_f64()), (Some(10), Some(0.0)), "{report}");
    assert_eq!(site.world.llm.answered(), 10);
    let usage = site.run(&["usage", "--by", "monitor", "--format", "json"]).await.expect(0).json();
    assert_eq!((usage[0]["cached"].as_u64(), usage[1]["cached"].as_u64()), (Some(0), Some(10)), "{usage}");
    // What is drawn at random is meant to differ.
    site.settings["profiles"]["judge"]["temperature"] = json!(0.7);
    site.save();
    for _ in 0..2 {
        site.run(&["infer", "--profile", "judge", "Again?"]).await.expect(0);
    }
    assert_eq!(site.world.llm.answered(), 12);
}

/// A Redis of this test's own, so that it can be killed.
struct Redis {
    child: Child,
    port: u16,
}

impl Redis {
    /// `None` where there is none on this machine, which CI does not put up with.
    fn start(port: u16) -> Option<Self> {
        let binary = std::env::var("ASSAYD_TEST_REDIS_SERVER").unwrap_or_else(|_| "redis-server".to_owned());
        let port_text = port.to_string();
        let started =
            Command::new(&binary).args(["--port", &port_text, "--save", "", "--appendonly", "no"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        match started {
            Ok(child) => Some(Self { child, port }),
            Err(error) => {
                assert!(std::env::var("ASSAYD_TEST_REQUIRE_REDIS").is_err(), "{binary}: {error}");
                eprintln!("NOT TESTED: there is no {binary} here ({error})");
                None
            }
        }
    }

    async fn up(&self, site: &Site) {
        site.wait("Redis to listen", async || tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.is_ok()).await;
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn a_redis_that_dies_is_a_miss_and_a_warning_and_is_used_again_when_it_is_back() {
    let mut site = Site::new().await;
    let Some(redis) = Redis::start(crate::site::free_port()) else { return };
    redis.up(&site).await;
    let port = redis.port;
    site.settings["cache"] = json!({ "url": format!("redis://127.0.0.1:{port}"), "memory_mb": 1 });
    site.settings["profiles"]["judge"]["cache"] = json!({ "ttl": "1h" });
    site.save();
    site.world.langfuse.add_some(6);
    site.world.llm.faults.latency(Duration::from_millis(300));
    site.monitor("m", &with(quick(), json!({ "evaluation": { "concurrency": 2 } })));
    let daemon = site.daemon().await;
    site.until("a run at work", |world| world.llm.answered() >= 2).await;
    drop(redis);
    site.until("the run to end without it", |world| world.langfuse.scored("helpful") == 6).await;
    site.says("the cache cannot be reached").await;
    let redis = Redis::start(port).unwrap();
    redis.up(&site).await;
    let add = |name: &str, count| site.world.langfuse.add_many(name, count, jiff::SignedDuration::from_mins(3), jiff::SignedDuration::from_secs(1));
    // It is left alone for a while, and then one call finds out.
    let mut judged = 6;
    while !site.log().contains("the cache answers again") {
        judged += 1;
        add(&format!("again-{judged}"), 1);
        site.until("the next run", |world| world.langfuse.scored("helpful") == judged).await;
    }
    add("later", 3);
    site.until("the last run", |world| world.langfuse.scored("helpful") == judged + 3).await;
    assert_eq!(daemon.stop().await, Some(0));
    // Another process finds in it what was asked since.
    let answered = site.world.llm.answered();
    site.monitor("n", &with(langfuse(), json!({ "source": { "name": "n" } })));
    site.once("n").await;
    assert_eq!(site.world.llm.answered() - answered, judged - 1, "those of before it was back are gone, the later ones are not");
}

#[tokio::test]
async fn what_should_not_leave_the_machine_does_not() {
    let mut site = Site::new().await;
    site.settings["profiles"]["judge"]["redact"] = json!(["email", "secret"]);
    site.save();
    site.write("answers.jsonl", "{\"id\": \"a\", \"input\": \"I am jane.doe@example.org\", \"output\": \"Your key is sk-abcdefghijklmnopqrstuvwx0123\"}\n");
    site.monitor("m", &json!({ "schedule": { "every": "1h" }, "source": { "type": "file", "path": "answers.jsonl", "settle": "0s" }, "metrics": [judge()] }));
    site.once("m").await;
    let prompt = &site.world.llm.prompts()[0];
    assert!(prompt.contains("I am [email]") && prompt.contains("[secret]"), "{prompt}");
    assert!(!prompt.contains("jane.doe") && !prompt.contains("sk-abcdef"), "{prompt}");
}

#[tokio::test]
async fn hooks_see_calls_and_hold_none_up() {
    let mut site = Site::new().await;
    site.settings["hooks"] = json!({
        "full": { "before": ["log_request"], "after": ["log_usage", "guard", "record", "langfuse", { "webhook": "http://127.0.0.1:9/gone" }] },
    });
    site.settings["environments"] = json!({ "test": { "hooks": "full" } });
    site.save();
    site.env.push(("ASSAYD_ENV".to_owned(), "test".to_owned()));
    site.world.langfuse.add_some(3);
    site.monitor("m", &quick());
    let daemon = site.daemon().await;
    site.until("the scores", |world| world.langfuse.scored("helpful") == 3).await;
    site.says("asking a model").await;
    site.says("a model was asked").await;
    site.says("hook.*webhook").await;
    assert_eq!(daemon.stop().await, Some(0));
    use sqlx::{Connection, Row};
    let mut db = sqlx::SqliteConnection::connect(&format!("sqlite://{}", site.path("state/assayd.db").display())).await.unwrap();
    let rows = sqlx::query("SELECT monitor, status, prompt, response, trace_id, input_tokens FROM calls").fetch_all(&mut db).await.unwrap();
    assert_eq!(rows.len(), 3);
    assert!(rows.iter().all(|row| row.get::<String, _>("status") == "ok" && row.get::<String, _>("prompt").contains("Rate how helpful")));
    assert!(rows.iter().all(|row| row.get::<String, _>("trace_id").len() == 32 && row.get::<i64, _>("input_tokens") > 20));
    site.env[0].1 = "nowhere".to_owned();
    let said = site.run(&["validate"]).await.expect(1).said();
    assert!(said.contains("ASSAYD_ENV is `nowhere`"), "{said}");
}

#[tokio::test]
async fn a_profile_is_asked_by_hand_with_and_without_a_daemon() {
    let site = Site::new().await;
    site.world.llm.words(|prompt| (!prompt.contains("JSON please")).then(|| "Hello, world".to_owned()));
    let said = site.run(&["infer", "--profile", "judge", "Say hello"]).await.expect(0).stdout;
    assert_eq!(said, "Hello, world\n");
    assert_eq!(site.fed(&["infer", "--profile", "judge", "--stream", "-"], "Say hello").await.expect(0).stdout, "Hello, world\n");
    site.write("schema.json", r#"{"type": "object", "properties": {"score": {"type": "number"}}, "required": ["score"], "additionalProperties": false}"#);
    let told = site.run(&["infer", "--profile", "judge", "--json-schema", "schema.json", "--format", "json", "JSON please"]).await.expect(0).json();
    assert!(told["text"].as_str().unwrap().contains("score") && told["provider"] == "openai" && told["input_tokens"].as_u64() > Some(1), "{told}");
    let _daemon = site.daemon().await;
    assert_eq!(site.run(&["infer", "--profile", "judge", "Say hello"]).await.expect(0).stdout, "Hello, world\n");
    let said = site.run(&["infer", "--profile", "jugde", "x"]).await.expect(2).said();
    assert!(said.contains("did you mean `judge`?"), "{said}");
    let models = site.run(&["models", "--format", "json"]).await.expect(0).json();
    assert_eq!((models[0]["profile"].as_str(), models[0]["listed"].as_bool(), models[0]["reachable"].as_bool()), (Some("judge"), Some(true), Some(true)));
}

#[tokio::test]
async fn others_call_profiles_by_openais_protocol() {
    let site = Site::new().await;
    site.world.llm.words(|_| Some("Hello, world".to_owned()));
    let _daemon = site.daemon().await;
    let client = reqwest::Client::new();
    let ask = async |body: Value| {
        let answer = client.post(format!("http://127.0.0.1:{}/v1/chat/completions", site.port)).json(&body).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    let question = json!({ "model": "judge", "messages": [{ "role": "system", "content": "Be kind." }, { "role": "user", "content": [{ "type": "text", "text": "hi" }] }] });
    let (status, text) = ask(question.clone()).await;
    let answer: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((status, answer["object"].as_str(), answer["choices"][0]["message"]["content"].as_str()), (200, Some("chat.completion"), Some("Hello, world")));
    assert!(answer["usage"]["total_tokens"].as_u64() > Some(20), "{answer}");
    assert_eq!(site.world.llm.prompts()[0], "Be kind.\nhi");
    let (status, text) = ask(with(question.clone(), json!({ "stream": true, "stream_options": { "include_usage": true } }))).await;
    let chunks: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    let told: String =
        chunks.iter().filter_map(|chunk| serde_json::from_str::<Value>(chunk).ok()?["choices"][0]["delta"]["content"].as_str().map(str::to_owned)).collect();
    assert_eq!((status, told.as_str(), chunks.last()), (200, "Hello, world", Some(&"[DONE]")), "{text}");
    assert!(chunks[chunks.len() - 2].contains("\"total_tokens\""), "{text}");
    for (body, status, code) in [
        (with(question.clone(), json!({ "model": "gpt-5" })), 404, "model_not_found"),
        (with(question.clone(), json!({ "tools": [{ "type": "function" }] })), 400, "unsupported_parameter"),
        (json!({ "model": "judge", "messages": [] }), 400, "messages"),
    ] {
        let (got, text) = ask(body).await;
        assert_eq!(got, status, "{text}");
        assert!(text.contains(code), "{text}");
    }
    let listed = site.get("/v1/models").await.unwrap();
    assert!(listed.contains("\"judge\"") && listed.contains("\"judge-a\""), "{listed}");
    site.world.llm.faults.always(Some(Fault::Status(500)));
    let (status, text) = ask(question).await;
    assert_eq!(status, 502, "{text}");
}

/// What a user of OpenAI's own client writes; the port is the first argument.
const CLIENT: &str = r#"
import sys, openai
client = openai.OpenAI(base_url=f"http://127.0.0.1:{sys.argv[1]}/v1", api_key="any", max_retries=0)
print([model.id for model in client.models.list()])
answer = client.chat.completions.create(model="judge", messages=[{"role": "user", "content": "hi"}], temperature=0, max_completion_tokens=50)
print(answer.choices[0].message.content, answer.choices[0].finish_reason, answer.usage.total_tokens > 20)
parts = client.chat.completions.create(model="judge", messages=[{"role": "user", "content": "hi"}], stream=True, stream_options={"include_usage": True})
print("".join(part.choices[0].delta.content or "" for part in parts if part.choices))
try:
    client.chat.completions.create(model="none", messages=[{"role": "user", "content": "hi"}])
except openai.NotFoundError as error:
    print(error.code)
"#;

#[tokio::test]
async fn openais_own_client_is_understood() {
    let python = std::env::var("ASSAYD_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let known = Command::new(&python).args(["-c", "import openai"]).stderr(Stdio::null()).status();
    if !known.is_ok_and(|status| status.success()) {
        assert!(std::env::var("ASSAYD_TEST_REQUIRE_OPENAI").is_err(), "{python} has no openai");
        eprintln!("NOT TESTED: {python} has no openai");
        return;
    }
    let site = Site::new().await;
    site.world.llm.words(|_| Some("Hello, world".to_owned()));
    let _daemon = site.daemon().await;
    let ran = tokio::process::Command::new(&python).args(["-c", CLIENT, &site.port.to_string()]).env("NO_PROXY", "*").output().await.unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    assert_eq!(said, "['judge', 'judge-a']\nHello, world stop True\nHello, world\nmodel_not_found\n", "{}", String::from_utf8_lossy(&ran.stderr));
}
