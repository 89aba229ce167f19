//! Keys that are named instead of written, and the store's sealed secrets.

use std::path::Path;

use serde_json::{Value, json};
use sqlx::{Connection, SqliteConnection};

use crate::{
    build::{langfuse, quick, with},
    site::Site,
};

const MASTER: &str = "8f2e6a0c4b1d9e7f3a5c6b8d0e2f4a6c8b0d1e3f5a7c9b2d4e6f8a0b1c3d5e7f";
const OTHER: &str = "correct horse battery staple";

/// A site whose OpenAI key stands elsewhere, with a monitor that needs it.
async fn site(key: &str) -> Site {
    let mut site = Site::new().await;
    site.settings["providers"]["openai"]["api_key"] = json!(key);
    site.save();
    site.monitor("m", &langfuse());
    site.world.langfuse.add_some(3);
    site
}

fn set_env(site: &mut Site, name: &str, value: &str) {
    site.env.retain(|(known, _)| known != name);
    site.env.push((name.to_owned(), value.to_owned()));
}

/// With the key in the store, under [`MASTER`].
async fn sealed() -> Site {
    let mut site = site("secret:openai").await;
    set_env(&mut site, "ASSAYD_MASTER_KEY", MASTER);
    site.fed(&["secrets", "set", "openai"], "sk-test\n").await.expect(0);
    site
}

async fn judged(site: &Site) -> Value {
    site.once("m").await["counts"]["scored"].clone()
}

/// Every file below a folder.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push((path.display().to_string(), std::fs::read(&path).unwrap()));
        }
    }
    found
}

fn holds(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// No file of the state folder has one of these boxes, in a free corner of a page or in the log.
#[track_caller]
fn assert_gone(site: &Site, boxes: &[Vec<u8>]) {
    for (path, bytes) in files(&site.path("state")) {
        assert!(!boxes.iter().any(|sealed| holds(&bytes, sealed)), "{path} has an old box");
    }
}

#[tokio::test]
async fn a_secret_reaches_its_service_and_nothing_else() {
    let mut site = sealed().await;
    site.fed(&["secrets", "set", "langfuse"], "sk-lf-test").await.expect(0);
    site.fed(&["secrets", "set", "slack.bot"], "xoxb-test\n").await.expect(0);
    site.settings["connections"]["langfuse"]["default"]["secret_key"] = json!("secret:langfuse");
    site.settings["connections"]["slack"]["default"]["token"] = json!("secret:slack.bot");
    site.settings["log"] = json!({ "level": "assayd=trace,debug", "file": "state/logs" });
    site.save();
    site.monitor("m", &quick());
    site.run(&["validate", "--live"]).await.expect(0);
    let daemon = site.daemon().await;
    site.until("the answers to be judged", |world| world.llm.answered() >= 3).await;
    site.more_runs("m", 1).await;
    site.run(&["secrets", "list"]).await.expect(0);
    // As it lies while it is used: the write-ahead log is not yet in the file.
    daemon.kill9().await;
    let files = files(&site.path("state"));
    for name in ["assayd.db", "assayd.db-wal", "logs/"] {
        assert!(files.iter().any(|(path, _)| path.contains(name)), "no {name}");
    }
    let log = site.log();
    for secret in ["sk-test", "sk-lf-test", "xoxb-test", MASTER] {
        assert!(!log.contains(secret), "the log tells {secret}");
        for (path, bytes) in &files {
            assert!(!holds(bytes, secret.as_bytes()), "{path} holds {secret}");
        }
    }
}

#[tokio::test]
async fn the_list_shows_names_and_times() {
    let site = sealed().await;
    let table = site.run(&["secrets", "list"]).await.expect(0).stdout;
    assert!(table.contains("openai"), "{table}");
    site.fed(&["secrets", "set", "openai"], "sk-test-2").await.expect(0);
    let rows = site.run(&["secrets", "list", "--format", "json"]).await.expect(0).json();
    assert_eq!(rows.as_array().unwrap().len(), 1);
    assert_eq!(rows[0]["name"], "openai");
    assert!(rows[0]["created_at"].as_str() < rows[0]["updated_at"].as_str(), "{rows}");
    assert_eq!(rows[0].as_object().unwrap().len(), 3, "{rows}");
    site.run(&["secrets", "rm", "openai"]).await.expect(0);
    let output = site.run(&["secrets", "rm", "openai"]).await.expect(2);
    assert!(output.stderr.contains("there is no secret `openai`"), "{output:?}");
    assert_eq!(site.run(&["secrets", "list", "--format", "json"]).await.expect(0).json(), json!([]));
}

#[tokio::test]
async fn a_value_comes_from_standard_input_alone() {
    let mut site = site("secret:openai").await;
    let output = site.fed(&["secrets", "set", "openai"], "sk-test").await.expect(2);
    assert!(output.stderr.contains("ASSAYD_MASTER_KEY"), "{output:?}");
    set_env(&mut site, "ASSAYD_MASTER_KEY", "too short");
    let output = site.fed(&["secrets", "set", "openai"], "sk-test").await.expect(2);
    assert!(output.stderr.contains("32 bytes") && output.stderr.contains("keygen"), "{output:?}");
    set_env(&mut site, "ASSAYD_MASTER_KEY", MASTER);
    site.run(&["secrets", "set", "openai", "value"]).await.expect(2);
    let output = site.fed(&["secrets", "set", "openai"], "\n").await.expect(2);
    assert!(output.stderr.contains("is empty"), "{output:?}");
    let output = site.fed(&["secrets", "set", "../openai"], "sk-test").await.expect(2);
    assert!(output.stderr.contains("no name"), "{output:?}");
    let made = site.run(&["secrets", "keygen"]).await.expect(0).stdout;
    set_env(&mut site, "ASSAYD_MASTER_KEY", made.trim());
    site.fed(&["secrets", "set", "openai"], "sk-test").await.expect(0);
    assert_eq!(judged(&site).await, 3);
}

#[tokio::test]
async fn the_wrong_master_key_is_told_and_opens_nothing() {
    let mut site = sealed().await;
    let place = regex::Regex::new(r"(?m)^assayd\.yaml:\d+:\d+: ").unwrap();
    for (key, words) in [(OTHER, "the master key is not the one"), ("", "no master key: set ASSAYD_MASTER_KEY"), ("short", "a master key is 32 bytes")] {
        set_env(&mut site, "ASSAYD_MASTER_KEY", key);
        let output = site.run(&["run"]).await.expect(2);
        assert!(output.stderr.contains(words), "{output:?}");
        let output = site.run(&["validate"]).await.expect(1);
        assert!(place.is_match(&output.stdout) && output.stdout.contains(words), "{output:?}");
        let output = site.fed(&["secrets", "set", "more"], "x").await.expect(2);
        assert!(output.stderr.contains(words), "{output:?}");
        // It calls nobody, so it needs no keys.
        site.run(&["status"]).await.expect(0);
    }
    assert_eq!(site.world.llm.requests(), 0);
}

#[tokio::test]
async fn a_rotation_changes_the_master_key_of_all_at_once() {
    let mut site = sealed().await;
    site.fed(&["secrets", "set", "second"], "sk-lf-test").await.expect(0);
    let output = site.run(&["secrets", "rotate"]).await.expect(2);
    assert!(output.stderr.contains("ASSAYD_NEW_MASTER_KEY"), "{output:?}");
    set_env(&mut site, "ASSAYD_NEW_MASTER_KEY", OTHER);
    let before = boxes(&site).await;
    site.run(&["secrets", "rotate"]).await.expect(0);
    let output = site.run(&["once", "m"]).await.expect(2);
    assert!(output.stderr.contains("the master key is not the one"), "{output:?}");
    assert_gone(&site, &before);
    set_env(&mut site, "ASSAYD_MASTER_KEY", OTHER);
    assert_eq!(judged(&site).await, 3);
    // And by files, as systemd and Docker hand them over.
    site.write("old.key", format!("{OTHER}\n"));
    site.write("new.key", format!("{MASTER}\n"));
    set_env(&mut site, "ASSAYD_MASTER_KEY", "");
    set_env(&mut site, "ASSAYD_MASTER_KEY_FILE", "old.key");
    site.run(&["secrets", "rotate", "--new-key-file", "new.key"]).await.expect(0);
    site.run(&["validate"]).await.expect(1);
    set_env(&mut site, "ASSAYD_MASTER_KEY_FILE", "");
    site.write("credentials/assayd_master_key", MASTER);
    let credentials = site.path("credentials").display().to_string();
    set_env(&mut site, "CREDENTIALS_DIRECTORY", &credentials);
    site.run(&["validate"]).await.expect(0);
}

#[tokio::test]
async fn what_is_forgotten_leaves_no_box_behind() {
    let site = sealed().await;
    let _daemon = site.daemon().await;
    site.fed(&["secrets", "set", "long"], &"sk-test ".repeat(40)).await.expect(0);
    let before = boxes(&site).await;
    site.run(&["secrets", "rm", "long"]).await.expect(0);
    site.fed(&["secrets", "set", "openai"], "x").await.expect(0);
    assert_gone(&site, &before);
}

#[tokio::test]
async fn a_key_is_found_where_the_settings_say() {
    for key in ["env:OPENAI", "env:FROM_FILE", "file:keys/openai.txt", "credential:openai", "file:${KEYS}/openai.txt"] {
        let mut site = site(key).await;
        set_env(&mut site, "OPENAI", "sk-test");
        site.write(".env", "FROM_FILE=sk-test\nKEYS=keys\n");
        site.write("keys/openai.txt", "sk-test\n");
        site.write("credentials/openai", "sk-test\n");
        let credentials = site.path("credentials").display().to_string();
        set_env(&mut site, "CREDENTIALS_DIRECTORY", &credentials);
        assert_eq!(judged(&site).await, 3, "{key}");
    }
}

#[tokio::test]
async fn a_key_that_is_not_found_is_a_fault_with_a_place() {
    let mut site = site("sk-test").await;
    set_env(&mut site, "EMPTY", "");
    site.write("empty.txt", "\n");
    for (key, words) in [
        ("env:ABSENT", "the environment variable `ABSENT` is not set"),
        ("env:EMPTY", "the environment variable `EMPTY` is empty"),
        ("env:", "behind `env:` stands the name"),
        ("file:absent.txt", "the file `absent.txt` cannot be read: No such file"),
        ("file:empty.txt", "the file `empty.txt` is empty"),
        ("file:/dev/zero", "the file `/dev/zero` holds more than 64 KiB"),
        ("credential:openai", "LoadCredential="),
        ("credential:../openai", "behind `credential:` stands the name"),
        ("secret:openai", "there is no secret `openai`; `assayd secrets set openai` makes it"),
    ] {
        let settings = format!("providers:\n  p: {{ type: openai, api_key: sk-test }}\n  openai:\n    type: openai\n    api_key: '{key}'\n");
        site.write("other.yaml", settings);
        let output = site.run(&["validate", "--config", "other.yaml"]).await.expect(1);
        let told = output.stdout.lines().any(|line| line.starts_with("other.yaml:5:14: ") && line.contains(words));
        assert!(told, "{key}: {output:?}");
        let output = site.run(&["run", "--config", "other.yaml"]).await.expect(2);
        assert!(output.stderr.contains(words), "{key}: {output:?}");
    }
    // Headers are keys, too; what a variable holds and what is no key are taken as they are.
    set_env(&mut site, "ODD", "env:ABSENT");
    site.write(
        "other.yaml",
        "monitors: env:ABSENT\nproviders:\n  openai:\n    type: openai\n    api_key: ${ODD}\n    organization: env:ABSENT\n    headers:\n      x-key: env:ABSENT\n",
    );
    let output = site.run(&["validate", "--config", "other.yaml"]).await.expect(1);
    let faults: Vec<_> = output.stdout.lines().filter(|line| line.starts_with("other.yaml")).collect();
    assert_eq!(faults, ["other.yaml:8:14: the environment variable `ABSENT` is not set"], "{output:?}");
}

async fn database(site: &Site) -> SqliteConnection {
    SqliteConnection::connect(&format!("sqlite://{}", site.path("state/assayd.db").display())).await.unwrap()
}

async fn boxes(site: &Site) -> Vec<Vec<u8>> {
    let mut database = database(site).await;
    let boxes = sqlx::query_scalar("SELECT box FROM secrets").fetch_all(&mut database).await.unwrap();
    database.close().await.unwrap();
    boxes
}

#[tokio::test]
async fn boxes_that_were_swapped_are_refused() {
    let mut site = sealed().await;
    for name in ["cheap", "third"] {
        site.fed(&["secrets", "set", name], "sk-cheap").await.expect(0);
    }
    let mut database = database(&site).await;
    let swap = "UPDATE secrets SET (nonce, box) = (SELECT nonce, box FROM secrets WHERE name = 'cheap') WHERE name = 'openai'";
    sqlx::raw_sql(swap).execute(&mut database).await.unwrap();
    database.close().await.unwrap();
    let output = site.run(&["once", "m"]).await.expect(2);
    assert!(output.stderr.contains("the secret `openai` was altered in the store"), "{output:?}");
    // Neither does a new master key make it good.
    set_env(&mut site, "ASSAYD_NEW_MASTER_KEY", OTHER);
    let output = site.run(&["secrets", "rotate"]).await.expect(2);
    assert!(output.stderr.contains("was altered"), "{output:?}");
    site.fed(&["secrets", "set", "openai"], "sk-test").await.expect(0);
    assert_eq!(judged(&site).await, 3);
}

#[tokio::test]
async fn secrets_change_beside_a_daemon_and_count_from_its_next_start() {
    let site = sealed().await;
    site.monitor("m", &quick());
    let daemon = site.daemon().await;
    for i in 0..10 {
        let output = site.fed(&["secrets", "set", &format!("more-{i}")], "value").await.expect(0);
        assert!(output.stderr.contains("restart it"), "{output:?}");
    }
    site.fed(&["secrets", "set", "openai"], "sk-wrong").await.expect(0);
    site.until("the answers to be judged", |world| world.llm.answered() >= 3).await;
    site.more_runs("m", 2).await;
    assert!(!site.log().contains("refuses writes"), "{}", site.log());
    assert_eq!(daemon.stop().await, Some(0));
    assert_eq!(site.run(&["secrets", "list", "--format", "json"]).await.expect(0).json().as_array().unwrap().len(), 11);
    site.world.langfuse.add(crate::world::NewTrace::new("late", jiff::Timestamp::now() - jiff::SignedDuration::from_mins(2)));
    site.monitor("m", &with(langfuse(), json!({ "source": { "settle": "0s" } })));
    let report = site.run(&["once", "m", "--format", "json"]).await.json();
    assert_eq!(report["counts"]["scored"], 0, "the new key is a wrong one: {report}");
}
