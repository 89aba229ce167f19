//! The state folder in trouble: the daemon says so, stops paying for judgements, and goes on when the trouble is over.

use std::{path::Path, process::Command, time::Duration};

use serde_json::json;
use sqlx::{Connection, SqliteConnection};

use crate::{
    build::{quick, with},
    site::Site,
};

const IN_FLIGHT: usize = 4;

/// A file system of its own, unmounted at the end.
struct Mount<'a>(&'a Path);

impl<'a> Mount<'a> {
    /// `None` where this machine does not let us mount. CI sets `ASSAYD_TEST_REQUIRE_MOUNT=1`, and there it is a failure.
    fn tmpfs(at: &'a Path, size: &str) -> Option<Self> {
        std::fs::create_dir_all(at).unwrap();
        let output = Command::new("mount").args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(at).output();
        let why = match output {
            Ok(output) if output.status.success() => return Some(Self(at)),
            Ok(output) => String::from_utf8_lossy(&output.stderr).into_owned(),
            Err(error) => error.to_string(),
        };
        assert!(std::env::var("ASSAYD_TEST_REQUIRE_MOUNT").is_err(), "cannot mount a tmpfs: {why}");
        eprintln!("\n*** SKIPPED, NOT PASSED: this story needs to mount a tmpfs, and may not: {} ***\n", why.trim());
        None
    }

    fn remount(&self, mode: &str) {
        let output = Command::new("mount").args(["-o", &format!("remount,{mode}")]).arg(self.0).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
}

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).status();
    }
}

/// Nothing more can be written: the daemon says so and makes few calls, none of them again and again.
async fn stops_paying(site: &Site) {
    let before = site.world.llm.answered();
    site.world.langfuse.add_many("late", 200, jiff::SignedDuration::from_mins(5), jiff::SignedDuration::from_mins(4));
    site.says("(?i)disk is full|disk full|database or disk|no space|read-?only|cannot be written|not writable|disk I/O|store").await;
    // Long enough for several slots.
    tokio::time::sleep(Duration::from_secs(6)).await;
    let paid = site.world.llm.answered() - before;
    assert!(paid <= 4 * IN_FLIGHT, "{paid} calls were paid for whose answers could not be kept");
}

async fn goes_on(site: &Site, items: usize) {
    site.wait_within(Duration::from_secs(100), "all scores", async || site.world.langfuse.scored("helpful") == items).await;
    assert!(site.world.langfuse.scores().values().all(|rows| rows.len() == 1));
    assert!(site.world.llm.answered() <= items + 8 * IN_FLIGHT, "{} calls for {items} items", site.world.llm.answered());
}

fn spec() -> serde_json::Value {
    with(quick(), json!({ "evaluation": { "concurrency": IN_FLIGHT } }))
}

#[tokio::test]
async fn a_full_disk_stops_the_paying_and_not_the_daemon() {
    let site = Site::new().await;
    let state = site.path("state");
    let Some(_mount) = Mount::tmpfs(&state, "8m") else { return };
    site.world.langfuse.add_some(10);
    site.monitor("m", &spec());
    let mut daemon = site.daemon().await;
    site.until("the first scores", |world| world.langfuse.scored("helpful") == 10).await;
    let filler = state.join("filler");
    // To the last byte: what is left over by a write in megabytes is filled in bytes.
    for (size, count) in [("64k", "200"), ("4k", "64"), ("1", "4096")] {
        let _ = Command::new("sh").args(["-c", &format!("dd if=/dev/zero bs={size} count={count} >> {} 2>/dev/null", filler.display())]).status();
    }
    stops_paying(&site).await;
    assert!(daemon.runs());
    std::fs::remove_file(&filler).unwrap();
    goes_on(&site, 210).await;
    assert_eq!(daemon.stop().await, Some(0));
}

#[tokio::test]
async fn a_read_only_state_folder_stops_the_paying_and_not_the_daemon() {
    let site = Site::new().await;
    let state = site.path("state");
    let Some(mount) = Mount::tmpfs(&state, "64m") else { return };
    site.world.langfuse.add_some(10);
    site.monitor("m", &spec());
    let daemon = site.daemon().await;
    site.until("the first scores", |world| world.langfuse.scored("helpful") == 10).await;
    assert_eq!(daemon.stop().await, Some(0));
    mount.remount("ro");
    // A start is refused with words, or the daemon starts and waits; it judges nothing either way.
    let answered = site.world.llm.answered();
    site.world.langfuse.add_many("late", 20, jiff::SignedDuration::from_mins(5), jiff::SignedDuration::from_mins(4));
    let mut daemon = site.spawn(&["run"]);
    site.says("(?i)read-?only|cannot be written|not writable|state").await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(site.world.llm.answered() <= answered + IN_FLIGHT);
    mount.remount("rw");
    if !daemon.runs() {
        assert_ne!(daemon.end().await, Some(0));
        daemon = site.daemon().await;
    }
    goes_on(&site, 30).await;
    assert_eq!(daemon.stop().await, Some(0));
}

#[tokio::test]
async fn a_state_folder_that_cannot_be_made_is_told() {
    let mut site = Site::new().await;
    site.write("a-file", "in the way");
    site.settings["state"] = json!("a-file/state");
    site.save();
    site.monitor("m", &spec());
    let output = site.run(&["run"]).await;
    assert!(matches!(output.code, Some(1 | 2)), "{output:?}");
    assert!(output.stderr.contains("a-file"), "{output:?}");
}

#[tokio::test]
async fn a_database_that_is_none_is_told_and_left_alone() {
    let site = Site::new().await;
    let junk = "this is no database ".repeat(500);
    site.write("state/assayd.db", &junk);
    site.monitor("m", &spec());
    let output = site.run(&["run"]).await;
    assert!(matches!(output.code, Some(1 | 2)), "{output:?}");
    assert!(output.stderr.contains("assayd.db") || output.stderr.contains("database"), "{output:?}");
    assert_eq!(std::fs::read_to_string(site.path("state/assayd.db")).unwrap(), junk);
}

#[tokio::test]
async fn a_database_locked_by_another_process_is_waited_for() {
    let site = Site::new().await;
    site.world.langfuse.add_some(10);
    site.monitor("m", &spec());
    let daemon = site.daemon().await;
    site.until("the first scores", |world| world.langfuse.scored("helpful") == 10).await;
    let url = format!("sqlite://{}", site.path("state/assayd.db").display());
    let mut other = SqliteConnection::connect(&url).await.unwrap();
    // Where the daemon holds the file for itself, nobody can lock it: the promise holds without more.
    if sqlx::raw_sql("BEGIN IMMEDIATE").execute(&mut other).await.is_ok() {
        let before = site.world.llm.answered();
        site.world.langfuse.add_many("late", 100, jiff::SignedDuration::from_mins(5), jiff::SignedDuration::from_mins(4));
        tokio::time::sleep(Duration::from_secs(8)).await;
        let paid = site.world.llm.answered() - before;
        assert!(paid <= 4 * IN_FLIGHT, "{paid} calls were paid for while nothing could be stored");
        sqlx::raw_sql("ROLLBACK").execute(&mut other).await.unwrap();
        goes_on(&site, 110).await;
    }
    assert_eq!(daemon.stop().await, Some(0));
}
