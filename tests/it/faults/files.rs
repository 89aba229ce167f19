//! Files that are broken: each is told with its place, and stops no good monitor.

use std::{os::unix::fs::symlink, time::Duration};

use serde_json::json;

use crate::{
    build::{quick, short, with},
    site::{Output, Site},
};

const SOUND: &str = "source: { type: file, path: x.jsonl }\nmetrics: [{ name: a, type: length, field: output, max: 10 }]\n";

/// What `validate` says of a bad file beside a good one.
async fn refused(content: impl AsRef<[u8]>) -> Output {
    let site = Site::new().await;
    site.write("monitors/good.yaml", format!("schedule: {{ every: 1h }}\n{SOUND}"));
    site.write("monitors/bad.yaml", content);
    let output = site.run(&["validate"]).await.expect(1);
    let said = output.said();
    assert!(said.contains("monitors/bad.yaml"), "{said}");
    assert!(!said.contains("monitors/good.yaml:"), "{said}");
    assert!(!said.contains("panicked"), "{said}");
    assert!(said.len() < 100_000, "a fault is told briefly: {} bytes", said.len());
    output
}

async fn refused_with(content: impl AsRef<[u8]>, words: &str) {
    let output = refused(content).await;
    let wanted = regex::Regex::new(&format!("(?si){words}")).unwrap();
    assert!(wanted.is_match(&output.said()), "no `{words}` in {}", output.said());
}

#[tokio::test]
async fn a_tab_is_told() {
    refused_with(format!("schedule:\n\tevery: 1h\n{SOUND}"), r"bad\.yaml:2:\d+").await;
}

#[tokio::test]
async fn a_cycle_is_told() {
    refused_with(format!("schedule: {{ every: 1h }}\nlabels: &a\n  self: *a\n{SOUND}"), r"bad\.yaml:\d+:\d+").await;
}

#[tokio::test]
async fn an_alias_bomb_is_told_and_not_blown_up() {
    let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for i in 1..12 {
        let list = vec![format!("*a{}", i - 1); 10].join(", ");
        text += &format!("a{i}: &a{i} [{list}]\n");
    }
    refused_with(text + SOUND, r"bad\.yaml").await;
}

#[tokio::test]
async fn a_file_of_10_mb_is_told() {
    let text = format!("schedule: {{ every: 1h }}\n{SOUND}description: \"{}\"\n", "x".repeat(10 << 20));
    refused_with(text, r"bad\.yaml.*(large|big|bytes|size|limit|mib|mb)").await;
}

#[tokio::test]
async fn bytes_that_are_no_text_are_told() {
    refused_with(b"schedule: { every: 1h }\ndescription: \"\xff\xfe\xc3\x28\"\n", r"bad\.yaml.*utf").await;
}

#[tokio::test]
async fn deep_nesting_is_told() {
    refused_with(format!("schedule: {}1{}\n{SOUND}", "[".repeat(20_000), "]".repeat(20_000)), r"bad\.yaml").await;
}

#[tokio::test]
async fn an_empty_document_that_is_no_map_is_told() {
    refused("- just\n- a list\n").await;
}

#[tokio::test]
async fn a_duplicate_key_is_told() {
    refused_with(format!("schedule: {{ every: 1h }}\nschedule: {{ every: 2h }}\n{SOUND}"), r"bad\.yaml:2:1.*schedule").await;
}

#[tokio::test]
async fn an_unknown_type_is_told_with_the_known_ones() {
    refused_with("schedule: { every: 1h }\nsource: { type: langfuze }\nmetrics: [{ name: a, type: length, max: 1 }]\n", r"bad\.yaml:2:\d+.*langfuze.*langfuse")
        .await;
}

#[tokio::test]
async fn a_missing_type_is_told() {
    refused_with("schedule: { every: 1h }\nsource: { path: x }\nmetrics: [{ name: a, type: length, max: 1 }]\n", r"bad\.yaml:2:\d+.*type").await;
}

#[tokio::test]
async fn a_cron_that_never_fires_is_told() {
    refused_with(format!("schedule: {{ cron: '0 0 31 2 *' }}\n{SOUND}"), r"bad\.yaml:1:\d+").await;
}

#[tokio::test]
async fn a_cron_that_is_none_is_told() {
    refused_with(format!("schedule: {{ cron: '61 * * * *' }}\n{SOUND}"), r"bad\.yaml:1:\d+").await;
}

#[tokio::test]
async fn two_schedules_in_one_are_told() {
    refused_with(format!("schedule: {{ every: 1h, interval_minutes: 5 }}\n{SOUND}"), r"bad\.yaml:1:\d+.*(every|exactly one)").await;
}

#[tokio::test]
async fn an_interval_below_a_second_is_told() {
    refused_with(format!("schedule: {{ every: 10ms }}\n{SOUND}"), r"bad\.yaml:1:\d+").await;
}

#[tokio::test]
async fn a_missing_variable_is_told_with_its_message() {
    refused_with(format!("schedule: {{ every: 1h }}\ndescription: ${{NOBODY_SET_THIS}}\n{SOUND}"), r"bad\.yaml:2:\d+.*NOBODY_SET_THIS").await;
    refused_with(format!("schedule: {{ every: 1h }}\ndescription: ${{NOBODY_SET_THIS:?ask the ops team}}\n{SOUND}"), r"bad\.yaml:2:\d+.*ask the ops team")
        .await;
}

#[tokio::test]
async fn a_regex_that_is_none_is_told() {
    refused_with("schedule: { every: 1h }\nsource: { type: file, path: x }\nmetrics: [{ name: a, type: regex, pattern: '(open' }]\n", r"bad\.yaml:3:\d+").await;
}

#[tokio::test]
async fn a_template_that_is_none_is_told() {
    refused_with(format!("schedule: {{ every: 1h }}\nextract: {{ input: '{{{{ trace.input' }}\n{SOUND}"), r"bad\.yaml:2:\d+").await;
}

#[tokio::test]
async fn an_expression_that_is_none_is_told() {
    refused_with(
        "schedule: { every: 1h }\nsource: { type: file, path: x, filter: 'trace.a ==' }\nmetrics: [{ name: a, type: length, max: 1 }]\n",
        r"bad\.yaml:2:\d+",
    )
    .await;
}

#[tokio::test]
async fn a_connection_that_nobody_made_is_told() {
    refused_with("schedule: { every: 1h }\nsource: { type: langfuse, connection: eu }\nmetrics: [{ name: a, type: length, max: 1 }]\n", r"bad\.yaml:2:\d+.*eu")
        .await;
}

#[tokio::test]
async fn two_metrics_of_one_name_are_told() {
    refused_with(
        "schedule: { every: 1h }\nsource: { type: file, path: x }\nmetrics: [{ name: a, type: length, max: 1 }, { name: a, type: length, max: 2 }]\n",
        r"bad\.yaml:3:\d+.*`?a",
    )
    .await;
}

#[tokio::test]
async fn a_name_out_of_its_alphabet_is_told() {
    refused_with(format!("name: Über Cool\nschedule: {{ every: 1h }}\n{SOUND}"), r"bad\.yaml:1:\d+").await;
}

#[tokio::test]
async fn two_monitors_of_one_name_are_told() {
    let site = Site::new().await;
    site.write("monitors/a/answers.yaml", format!("schedule: {{ every: 1h }}\n{SOUND}"));
    site.write("monitors/b/answers.yaml", format!("schedule: {{ every: 1h }}\n{SOUND}"));
    let said = site.run(&["validate"]).await.expect(1).said();
    assert!(said.contains("answers") && said.contains("monitors/a/answers.yaml") && said.contains("monitors/b/answers.yaml"), "{said}");
}

#[tokio::test]
async fn a_file_that_cannot_be_read_is_told() {
    let site = Site::new().await;
    site.write("monitors/good.yaml", format!("schedule: {{ every: 1h }}\n{SOUND}"));
    symlink("nowhere", site.path("monitors/dangling.yaml")).unwrap();
    let said = site.run(&["validate"]).await.expect(1).said();
    assert!(said.contains("monitors/dangling.yaml"), "{said}");
}

#[tokio::test]
async fn one_go_tells_every_fault_of_a_file() {
    let text = "nam: bad\nenabled: perhaps\nschedule: { every: 5 }\nsource: { type: file, path: x, limit: 0, settle: soon, lookback: late }\n\
        metrics:\n  - { name: a, type: length, threshold: 7 }\n  - { name: b, type: lenght }\nalerts:\n  - { name: c, when: mean, repeat: often }\n";
    let said = refused(text).await.said();
    let told: Vec<u32> = (1..=9).filter(|line| said.contains(&format!("bad.yaml:{line}:"))).collect();
    assert_eq!(told, [1, 2, 3, 4, 6, 7, 9], "{said}");
    for word in ["nam", "limit", "soon", "late", "often"] {
        assert!(said.contains(word) || word == "limit" && said.contains("at least 1"), "nothing of `{word}`: {said}");
    }
}

#[tokio::test]
async fn a_file_of_very_many_keys_is_told_briefly() {
    let keys: String = (0..40_000).map(|n| format!("k{n}: 1\n")).collect();
    refused_with(format!("schedule: {{ every: 1h }}\n{SOUND}{keys}"), r"more faults").await;
}

#[tokio::test]
async fn a_folder_that_links_to_itself_is_walked_once() {
    let site = Site::new().await;
    site.write("monitors/team/good.yaml", format!("schedule: {{ every: 1h }}\n{SOUND}"));
    symlink(".", site.path("monitors/loop")).unwrap();
    symlink("..", site.path("monitors/team/up")).unwrap();
    let output = site.run(&["validate"]).await.expect(0);
    assert!(!output.said().contains("taken"), "{}", output.said());
}

#[tokio::test]
async fn what_a_variable_holds_is_never_told() {
    let mut site = Site::new().await;
    let secret = "xoxb-271828-314159-very-secret-and-rather-long-token-indeed-so-that-it-is-cut";
    site.write(".env", format!("TOKEN={secret}\nNUMBER=987654321\nURL=postgres://user:hunter22@db/assayd\n"));
    site.write(
        "monitors/m.yaml",
        "name: ${TOKEN}\nenabled: ${NUMBER}\nschedule: { every: '${TOKEN}' }\nsource: { type: '${URL}', path: x }\nsampling: { strategy: '${TOKEN}' }\n\
         metrics: [{ name: a, type: length, max: '${TOKEN}' }]\nalerts: [{ name: b, when: mean < 1, over: '${URL}', notify: [{ slack: x, connection: '${TOKEN}' }] }]\n",
    );
    let of_monitor = site.run(&["validate"]).await.expect(1).said();
    site.settings["database"] = json!("postgres://user:hunter22@db/assayd");
    site.settings["listen"] = json!("${TOKEN}");
    site.settings["log"] = json!({ "format": "${TOKEN}", "keep": "${URL}", "rotation": "${NUMBER}" });
    site.settings["profiles"]["judge"]["provider"] = json!("${TOKEN}");
    site.save();
    let of_settings = site.run(&["validate"]).await.expect(1).said();
    assert!(of_settings.contains("monitors/m.yaml:"), "faults of the settings hide none of the monitors: {of_settings}");
    for said in [of_monitor, of_settings] {
        assert!(said.contains("${TOKEN}"), "the variable is named: {said}");
        for part in ["xoxb-27", "314159", "hunter22", "98765"] {
            assert!(!said.contains(part), "`{part}` in {said}");
        }
    }
}

#[tokio::test]
async fn an_empty_token_protects_nothing_and_is_refused() {
    let mut site = Site::new().await;
    site.settings["auth"] = json!({ "token": "" });
    site.save();
    let said = site.run(&["run"]).await.expect(2).said();
    assert!(said.contains("token") && said.contains("empty"), "{said}");
}

#[tokio::test]
async fn defaults_that_break_leave_the_folders_monitors_as_they_were() {
    let site = Site::new().await;
    site.world.langfuse.add_some(2);
    site.write("monitors/team/_defaults.yaml", "labels: { team: support }\nsampling: { strategy: all }\n");
    site.write("monitors/team/.env", "MARK=marked\n");
    let spec = with(quick(), json!({ "name": "m", "metrics": [with(short(), json!({ "name": "${MARK}" }))] }));
    site.write("monitors/team/m.yaml", crate::site::to_yaml(&spec));
    let _daemon = site.daemon().await;
    site.until("the monitor's scores", |world| world.langfuse.scored("marked") == 2).await;

    site.write("monitors/team/_defaults.yaml", "labels:\n\tteam: support\n");
    site.says(r"team/_defaults\.yaml:2:\d+").await;
    site.write("monitors/team/.env", "MARK\n");
    site.says(r"team/\.env:1:1").await;
    site.more_runs("m", 2).await;
    site.world.langfuse.add(crate::world::NewTrace::new("late", jiff::Timestamp::now() - jiff::SignedDuration::from_secs(1)));
    site.until("a score under its old name", |world| world.langfuse.scored("marked") == 3).await;
    assert_eq!(site.run(&["validate"]).await.expect(1).said().matches("_defaults.yaml:").count(), 1);
    // A start finds no last good version: better no monitor than one that nobody wrote.
    assert!(site.run(&["once", "m", "--state", "elsewhere"]).await.code != Some(0));
}

#[tokio::test]
async fn broken_files_stop_no_good_monitor() {
    let site = Site::new().await;
    site.world.langfuse.add_some(3);
    for (name, content) in [("tab", "schedule:\n\tevery: 1h\n".as_bytes()), ("bytes", b"\xff\xfe"), ("open", b"schedule: ["), ("empty", b"")] {
        site.write(&format!("monitors/{name}.yaml"), content);
    }
    symlink("nowhere", site.path("monitors/dangling.yaml")).unwrap();
    std::fs::create_dir(site.path("monitors/folder.yaml")).unwrap();
    site.monitor("good", &with(quick(), json!({ "metrics": [short()] })));
    let _daemon = site.daemon().await;
    site.until("the good monitor's scores", |world| world.langfuse.scored("short") == 3).await;
    let log = site.log();
    assert!(["tab.yaml", "bytes.yaml", "open.yaml", "dangling.yaml"].iter().all(|file| log.contains(file)), "{log}");
}

#[tokio::test]
async fn a_missing_folder_of_monitors_is_said() {
    let site = Site::new().await;
    std::fs::remove_dir(site.path("monitors")).unwrap();
    let mut daemon = site.spawn(&["run"]);
    site.says("monitors").await;
    // To end with wrong settings is sound; to wait for the folder is better.
    site.wait("an end or readiness", async || {
        site.request(reqwest::Method::GET, "/healthz").await.is_some() || site.log().contains("exit") || !site.log().is_empty()
    })
    .await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    if daemon.runs() {
        site.world.langfuse.add_some(1);
        std::fs::create_dir(site.path("monitors")).unwrap();
        site.monitor("m", &with(quick(), json!({ "metrics": [short()] })));
        site.until("the monitor of the new folder", |world| world.langfuse.scored("short") == 1).await;
        assert_eq!(daemon.stop().await, Some(0));
    } else {
        assert_eq!(daemon.end().await, Some(2));
    }
}

#[tokio::test]
async fn a_folder_deleted_under_a_running_daemon_is_watched_again_when_it_is_back() {
    let site = Site::new().await;
    site.world.langfuse.add_some(2);
    site.monitor("m", &with(quick(), json!({ "metrics": [short()] })));
    let mut daemon = site.daemon().await;
    site.until("its scores", |world| world.langfuse.scored("short") == 2).await;
    std::fs::remove_dir_all(site.path("monitors")).unwrap();
    site.reload().await;
    assert!(daemon.runs());
    std::fs::create_dir(site.path("monitors")).unwrap();
    site.monitor("n", &with(quick(), json!({ "source": { "name": "n" }, "metrics": [with(short(), json!({ "name": "back" }))] })));
    site.until("the monitor of the new folder", |world| world.langfuse.scored("back") == 2).await;
    // And it is watched, not only read by the way.
    site.monitor("n", &with(quick(), json!({ "source": { "name": "n2" }, "metrics": [with(short(), json!({ "name": "changed" }))] })));
    site.until("a change in the new folder", |world| world.langfuse.scored("changed") == 2).await;
    assert_eq!(daemon.stop().await, Some(0));
}
