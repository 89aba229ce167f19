//! Who is told of alerts, and how: together, once, where they belong, and not while nobody wants to hear of them.

use std::{
    process::Stdio,
    sync::{Arc, Mutex},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
};

use crate::{
    build::{quick, with},
    site::Site,
    world::{Fault, World},
};

/// What a product or its users might write to be heard in Slack.
const HOSTILE: &str = "<!channel> <@U123|boss> ```x & <https://evil.example|langfuse.com>\n\u{202e}\u{7} *bold* |";

/// A monitor over answers of a file, with two plain alerts.
fn monitor(team: &str) -> Value {
    let alert = |name: &str, threshold: f64| json!({ "name": name, "metric": "good", "when": format!("mean < {threshold}"), "over": "runs: 1" });
    json!({
        "labels": { "team": team },
        "schedule": { "every": "1h" },
        "source": { "type": "file", "path": "answers.jsonl", "settle": "0s", "lookback": "3650d", "overlap": "3650d" },
        "metrics": [{ "name": "good", "type": "contains", "field": "output", "any": ["good"] }],
        "alerts": [alert("low", 0.8), alert("very-low", 0.5)],
    })
}

/// Ten more answers, so many of them good, and a run of each monitor over them.
async fn answers(site: &Site, monitors: &[&str], good: usize) {
    let path = site.path("answers.jsonl");
    let mut lines = std::fs::read_to_string(&path).unwrap_or_default();
    let from = lines.lines().count();
    for n in 0..10 {
        let output = if n < good { "good" } else { "bad" };
        let line =
            json!({ "id": format!("a{} {HOSTILE}", from + n), "timestamp": "2026-11-01T00:00:00Z", "input": HOSTILE, "output": format!("{output} {HOSTILE}") });
        lines.push_str(&format!("{line}\n"));
    }
    std::fs::write(path, lines).unwrap();
    for monitor in monitors {
        site.once(monitor).await;
    }
}

async fn site(settings: Value) -> Site {
    let mut site = Site::new().await;
    site.settings.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
    site.save();
    site
}

fn title(message: &Value) -> &str {
    message["blocks"][0]["text"]["text"].as_str().unwrap()
}

#[tokio::test]
async fn alerts_of_a_monitor_are_one_message_that_is_edited_and_has_a_thread() {
    let site = site(json!({ "notify": [{ "slack": "#llm" }] })).await;
    site.monitor("m", &monitor("support"));
    answers(&site, &["m"], 0).await;
    let messages = site.world.slack.messages();
    assert_eq!(messages.iter().map(title).collect::<Vec<_>>(), ["🟠 Firing: 2 alerts · m"], "{messages:?}");
    answers(&site, &["m"], 6).await;
    answers(&site, &["m"], 10).await;
    let (updates, replies) = (site.world.slack.updates(), site.world.slack.replies());
    assert_eq!(updates.iter().map(title).collect::<Vec<_>>(), ["🟠 Firing: 1 alert, resolved: 1 · m", "✅ Resolved: 2 alerts · m"]);
    assert!(updates.iter().all(|update| update["ts"] == messages[0]["ts"]));
    assert_eq!(replies.len(), 2);
    assert!(replies[0].to_string().contains("very-low") && !replies[1].to_string().contains("very-low"), "{replies:?}");
    answers(&site, &["m"], 6).await;
    assert_eq!(
        site.world.slack.messages().iter().map(title).collect::<Vec<_>>(),
        ["🟠 Firing: 2 alerts · m", "🟠 Firing: low · m"],
        "the next trouble is another one"
    );
}

#[tokio::test]
async fn labels_say_who_is_told_and_what_is_told_together() {
    let site = site(json!({
        "notify": [{ "slack": "#all" }],
        "routes": [
            { "matchers": ["alertname=very-low"], "notify": [{ "slack": "#on-call" }], "group_by": ["..."], "continue": true },
            { "matchers": ["team=~support|search"], "notify": [{ "slack": "#teams" }], "group_by": ["team"] },
        ],
    }))
    .await;
    for (name, team) in [("m", "support"), ("n", "support"), ("o", "other")] {
        site.monitor(name, &monitor(team));
    }
    answers(&site, &["m", "n", "o"], 0).await;
    let told = |channel: &str| {
        let messages = site.world.slack.messages();
        messages.iter().filter(|message| message["channel"] == channel).map(|message| title(message).to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(told("#on-call"), ["🟠 Firing: very-low · m", "🟠 Firing: very-low · n", "🟠 Firing: very-low · o"]);
    assert_eq!(told("#teams"), ["🟠 Firing: 2 alerts · team=support"], "those of the second monitor joined it");
    assert_eq!(site.world.slack.updates().iter().map(title).collect::<Vec<_>>(), ["🟠 Firing: 4 alerts · team=support"]);
    assert_eq!(told("#all"), ["🟠 Firing: low · o"], "what fits no route, but for what a route took along");
}

#[tokio::test]
async fn an_answer_of_slack_that_was_lost_is_looked_up_and_nothing_is_said_twice() {
    let site = site(json!({ "notify": [{ "slack": "#llm" }] })).await;
    site.monitor("m", &with(monitor("support"), json!({ "schedule": { "every": "1s" } })));
    site.world.slack.faults.queue([Fault::Cut]);
    answers(&site, &["m"], 0).await;
    let daemon = site.daemon().await;
    site.until("the message to be looked for", |world| !world.slack.history.calls("conversations.history").is_empty()).await;
    site.more_runs("m", 2).await;
    assert_eq!(site.world.slack.messages().len(), 1);
    assert_eq!(daemon.stop().await, Some(0));

    // The same of a reply, after the edit.
    site.world.slack.faults.queue([Fault::Cut, Fault::Cut]);
    answers(&site, &["m"], 10).await;
    let _daemon = site.daemon().await;
    site.until("the reply to be looked for", |world| !world.slack.history.calls("conversations.replies").is_empty()).await;
    site.more_runs("m", 2).await;
    assert_eq!((site.world.slack.messages().len(), site.world.slack.replies().len()), (1, 1));
}

#[tokio::test]
async fn nobody_is_told_during_a_maintenance_and_everybody_after_it() {
    // A whole week from some Monday on: now is always in it.
    let mut site = site(json!({ "notify": [{ "slack": "#llm" }], "maintenance": [{ "start": "00:00", "duration": "7d", "timezone": "Europe/Berlin", "matchers": ["severity!=critical"] }] })).await;
    site.monitor("m", &monitor("support"));
    answers(&site, &["m"], 0).await;
    assert!(site.world.slack.messages().is_empty());
    let status = site.run(&["status", "--format", "json"]).await.expect(0).stdout;
    assert!(status.contains("maintenance until"), "{status}");
    site.settings.as_object_mut().unwrap().remove("maintenance");
    site.save();
    answers(&site, &["m"], 0).await;
    assert_eq!(site.world.slack.messages().len(), 1);
}

#[tokio::test]
async fn faults_of_routes_and_maintenances_name_their_place() {
    for (settings, wanted) in [
        (json!({ "routes": [{ "matchers": ["team"], "notify": [{ "slack": "#a" }] }] }), "`team` is no matcher"),
        (json!({ "routes": [{ "matchers": ["a=b"], "notify": [] }] }), "somebody to `notify`"),
        (json!({ "routes": [{ "matchers": ["a=b"], "notify": [{ "webhook": "none" }] }] }), "connections.webhook.none"),
        (json!({ "maintenance": [{ "start": "25:00", "duration": "1h" }] }), "`25:00` is no time of day"),
        (json!({ "maintenance": [{ "start": "22:00", "duration": "8d" }] }), "between 1m and 7d"),
        (json!({ "maintenance": [{ "start": "22:00", "duration": "1h", "timezone": "Europe/Berlinn" }] }), "did you mean `Europe/Berlin`"),
        (json!({ "external_url": "assayd" }), "`assayd` is no address"),
        (json!({ "group_bye": ["team"] }), "did you mean `group_by`"),
    ] {
        let site = site(settings.clone()).await;
        let said = site.run(&["validate"]).await.expect(1).said();
        assert!(said.contains(wanted) && said.contains("assayd.yaml:"), "{settings}: {said}");
    }
}

/// Takes mail, as far as a sender goes without encryption.
async fn mail_server() -> (u16, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (port, mails) = (listener.local_addr().unwrap().port(), Arc::<Mutex<Vec<String>>>::default());
    let taken = Arc::clone(&mails);
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            let _ = take_mail(connection, &taken).await;
        }
    });
    (port, mails)
}

async fn take_mail(mut connection: TcpStream, mails: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let (read, mut write) = connection.split();
    let mut lines = BufReader::new(read).lines();
    write.write_all(b"220 test\r\n").await?;
    while let Some(line) = lines.next_line().await? {
        let answer = match line.split(' ').next().unwrap_or_default() {
            "EHLO" => "250-test\r\n250 8BITMIME\r\n",
            "DATA" => {
                write.write_all(b"354 go on\r\n").await?;
                let mut mail = String::new();
                while let Some(line) = lines.next_line().await?.filter(|line| line != ".") {
                    mail.push_str(&format!("{line}\n"));
                }
                mails.lock().unwrap().push(mail);
                "250 taken\r\n"
            }
            "RCPT" if line.contains("gone@") => "550 no such mailbox\r\n",
            "QUIT" => "221 bye\r\n",
            _ => "250 ok\r\n",
        };
        write.write_all(answer.as_bytes()).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_mail_tells_the_beginning_and_the_end_in_one_thread() {
    let (port, mails) = mail_server().await;
    let mut site = site(json!({ "notify": [{ "email": "ops@example.com, lead@example.com" }] })).await;
    site.settings["connections"]["email"] =
        json!({ "default": { "host": "127.0.0.1", "port": port, "security": "none", "from": "assayd <assayd@example.com>" } });
    site.save();
    site.monitor("m", &monitor("support"));
    answers(&site, &["m"], 0).await;
    answers(&site, &["m"], 10).await;
    let mails = mails.lock().unwrap().clone();
    let header = |mail: &str, name: &str| {
        let head = mail.split("\n\n").next().unwrap();
        head.lines().find_map(|line| line.strip_prefix(&format!("{name}: "))).map(str::to_owned)
    };
    let to: Vec<String> = mails.iter().map(|mail| header(mail, "To").unwrap()).collect();
    assert_eq!(to, ["ops@example.com", "lead@example.com", "ops@example.com", "lead@example.com"], "{mails:?}");
    assert!(header(&mails[0], "Subject").unwrap().contains("firing") && header(&mails[2], "Subject").unwrap().contains("resolved"));
    assert_eq!(header(&mails[2], "In-Reply-To"), header(&mails[0], "Message-ID"));
    assert!(mails.iter().all(|mail| header(mail, "Bcc").is_none()));
}

#[tokio::test]
async fn a_mailbox_that_is_gone_keeps_no_other_from_its_mail() {
    let (port, mails) = mail_server().await;
    let mut site = site(json!({ "notify": [{ "email": "gone@example.com, ops@example.com" }] })).await;
    site.settings["connections"]["email"] = json!({ "default": { "host": "127.0.0.1", "port": port, "security": "none", "from": "assayd@example.com" } });
    site.save();
    site.monitor("m", &monitor("support"));
    answers(&site, &["m"], 0).await;
    let taken = mails.lock().unwrap().clone();
    assert_eq!(taken.len(), 1, "{taken:?}");
    answers(&site, &["m"], 10).await;
    assert_eq!(mails.lock().unwrap().len(), 2, "and the end of it");
}

#[tokio::test]
async fn an_alert_that_changed_its_group_while_it_fired_ends_in_both() {
    let mut site = site(json!({ "notify": [{ "slack": "#llm" }] })).await;
    let mut spec = monitor("support");
    spec["alerts"] = json!([{ "name": "low", "metric": "good", "when": "mean < 0.8", "over": "runs: 1", "repeat": "0s" }]);
    site.monitor("m", &spec);
    answers(&site, &["m"], 0).await;
    site.settings["group_by"] = json!(["alertname"]);
    site.save();
    answers(&site, &["m"], 0).await;
    assert_eq!(site.world.slack.messages().len(), 2, "said again, in its new group");
    answers(&site, &["m"], 10).await;
    let ended: Vec<Value> = site.world.slack.updates().iter().filter(|update| title(update).contains("Resolved")).map(|update| update["ts"].clone()).collect();
    assert_eq!(ended.len(), 2, "{ended:?}");
}

#[tokio::test]
async fn what_is_worse_than_all_that_fires_is_heard_in_the_channel() {
    let site = site(json!({ "notify": [{ "slack": "#llm" }] })).await;
    let mut spec = monitor("support");
    spec["alerts"][1]["severity"] = json!("critical");
    site.monitor("m", &spec);
    answers(&site, &["m"], 6).await;
    answers(&site, &["m"], 0).await;
    let replies = site.world.slack.replies();
    assert_eq!((replies.len(), &replies[0]["reply_broadcast"]), (1, &json!(true)), "{replies:?}");
    answers(&site, &["m"], 6).await;
    assert_eq!(site.world.slack.replies()[1]["reply_broadcast"], Value::Null);
}

#[tokio::test]
async fn a_test_goes_the_whole_way_and_leaves_nothing_open() {
    let mut site = site(json!({ "notify": [{ "slack": "#llm" }] })).await;
    let said = site.run(&["alerts", "test"]).await.expect(0).stdout;
    assert!(said.contains("slack:#llm: a sample alert and its end were taken"), "{said}");
    let (messages, updates) = (site.world.slack.messages(), site.world.slack.updates());
    assert!(title(&messages[0]).contains("TEST") && title(&updates[0]).starts_with("✅"), "{messages:?} {updates:?}");
    assert_eq!(site.run(&["alerts", "test", "slack:#other"]).await.expect(0).stdout, "slack:#other: a sample alert and its end were taken\n");
    let unknown = site.run(&["alerts", "test", "webhook:none"]).await.expect(2).said();
    assert!(unknown.contains("connections.webhook.none"), "{unknown}");
    assert!(site.run(&["alerts", "test", "carrier-pigeon"]).await.expect(2).said().contains("is no receiver"));
    site.settings["connections"]["slack"]["default"]["api_url"] = json!("http://127.0.0.1:9/api/");
    site.save();
    assert!(site.run(&["alerts", "test"]).await.expect(1).stdout.contains("not delivered"));
}

#[tokio::test]
async fn a_message_leads_to_a_form_that_silences_it() {
    let site = site(json!({ "notify": [{ "slack": "#llm" }], "external_url": "https://assayd.example.com" })).await;
    site.monitor("m", &with(quick(), monitor("support")));
    answers(&site, &["m"], 0).await;
    let text = site.world.slack.messages()[0].to_string();
    assert!(text.contains("<https://assayd.example.com/silences/new?matcher=monitor%3Dm|Silence>"), "{text}");
    let _daemon = site.daemon().await;
    let page = site.get("/silences/new?matcher=monitor%3Dm").await.expect("the form");
    assert!(page.contains("<form") && !page.contains("monitor=m"), "what the link says is not part of the page");
    assert!(site.get("/").await.expect("the daemon's own page").contains("silences/new"));
    assert!(site.get("/silences/new.js").await.expect("its script").contains("api/v1/silences"));
}

const SLACK_SDK: &str = r#"
import json, sys
from slack_sdk.models.blocks import Block
from slack_sdk.models.metadata import Metadata
count = 0
for message in json.load(sys.stdin):
    for block in Block.parse_all(message["blocks"]):
        block.validate_json()
        count += 1
    assert len(message["blocks"]) <= 50 and message["text"]
    Metadata(**message["metadata"]).validate_json()
print(count)
"#;

/// The texts in which Slack obeys what stands in angle brackets.
fn obeyed(message: &Value) -> Vec<String> {
    fn collect(value: &Value, into: &mut Vec<String>) {
        if value["type"] == "mrkdwn" {
            into.extend(value["text"].as_str().map(str::to_owned));
        }
        value.as_object().into_iter().flat_map(|map| map.values()).for_each(|value| collect(value, into));
        value.as_array().into_iter().flatten().for_each(|value| collect(value, into));
    }
    let mut texts = vec![message["text"].as_str().unwrap().to_owned()];
    collect(&message["blocks"], &mut texts);
    texts
}

/// Every payload that a world's Slack was sent.
fn payloads(world: &World) -> Vec<Value> {
    [world.slack.messages(), world.slack.replies(), world.slack.updates()].concat()
}

#[tokio::test]
async fn slacks_own_sdk_takes_every_payload_whatever_a_trace_says() {
    let python = std::env::var("ASSAYD_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let known = std::process::Command::new(&python).args(["-c", "import slack_sdk"]).stderr(Stdio::null()).status();
    if !known.is_ok_and(|status| status.success()) {
        assert!(std::env::var("ASSAYD_TEST_REQUIRE_SLACK_SDK").is_err(), "{python} has no slack_sdk");
        eprintln!("NOT TESTED: {python} has no slack_sdk");
        return;
    }
    let site = site(json!({ "notify": [{ "slack": "#llm" }] })).await;
    let mut many = monitor(HOSTILE);
    let alerts = (0..60).map(|n| json!({ "name": format!("{n} {HOSTILE}"), "metric": "good", "when": "mean < 0.8", "over": "runs: 1" })).collect::<Vec<_>>();
    site.monitor("one", &with(monitor(HOSTILE), json!({ "alerts": [alerts[0]] })));
    many["alerts"] = json!(alerts);
    site.monitor("many", &many);
    for good in [0, 5, 10] {
        answers(&site, &["one", "many"], good).await;
    }
    let sent = payloads(&site.world);
    assert!(sent.len() > 6, "beginning and end of one, and pages of many: {}", sent.len());
    for text in sent.iter().flat_map(obeyed) {
        assert!(!text.contains("<!channel>") && !text.contains('\u{202e}') && !text.contains('`'), "{text}");
    }
    let mut child =
        tokio::process::Command::new(&python).args(["-c", SLACK_SDK]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(serde_json::to_string(&sent).unwrap().as_bytes()).await.unwrap();
    let ran = child.wait_with_output().await.unwrap();
    let (blocks, complaint) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success() && blocks.trim().parse::<u32>().is_ok_and(|blocks| blocks > 60), "{blocks} {complaint}");
}
