//! kill -9 at random moments, again and again: nothing is lost, nothing is doubled, and what was answered is not paid
//! for a second time, except for the calls that were in flight.

use std::time::Duration;

use serde_json::json;

use crate::{
    build::{judge, quick, with},
    site::Site,
    world::Mode,
};

const TRACES: usize = 300;
const KILLS: usize = 25;
const IN_FLIGHT: usize = 4;

async fn no_kill_loses_or_doubles_a_score(mode: Mode, profile: &str, mut chance: u64) {
    let site = Site::with(mode).await;
    site.world.langfuse.add_some(TRACES);
    site.world.llm.faults.latency(Duration::from_millis(35));
    site.world.langfuse.writes.latency(Duration::from_millis(5));
    let metrics = json!([with(judge(), json!({ "model": profile }))]);
    site.monitor("m", &with(quick(), json!({ "metrics": metrics, "evaluation": { "concurrency": IN_FLIGHT } })));
    for kill in 0..KILLS {
        let mut daemon = site.spawn(&["run"]);
        // xorshift: any moment from the start of the process to well into its work, the same ones in every run.
        chance ^= chance << 13;
        chance ^= chance >> 7;
        chance ^= chance << 17;
        tokio::time::sleep(Duration::from_millis(20 + chance % 380)).await;
        assert!(daemon.runs(), "kill {kill}: the daemon ended by itself:\n{}", daemon.log());
        daemon.kill9().await;
    }
    let daemon = site.daemon().await;
    site.until("a score for every item", |world| world.langfuse.scored("helpful") == TRACES).await;
    // What else is going to be sent has been sent when two more runs are over and the daemon has drained.
    site.more_runs("m", 2).await;
    assert_eq!(daemon.stop().await, Some(0));

    let shown = site.world.langfuse.scores();
    assert_eq!(shown.len(), TRACES);
    let doubled: Vec<_> = shown.iter().filter(|(_, rows)| rows.len() != 1).collect();
    assert!(doubled.is_empty(), "{doubled:?}");
    let stored = site.export(&[]).await;
    assert_eq!((stored.len(), site.scored_items("m", "helpful").await.len()), (TRACES, TRACES));
    let paid = site.world.llm.answered();
    assert!(paid <= TRACES + KILLS * IN_FLIGHT, "{paid} calls were answered for {TRACES} items and {KILLS} kills with {IN_FLIGHT} in flight");
    // The kills fell into the work, or they show nothing.
    assert!(site.log().len() > 1000 && site.world.llm.requests() > paid, "no kill fell on a call in flight");
}

#[tokio::test]
async fn no_kill_loses_or_doubles_a_score_of_langfuse_v4_and_openai() {
    no_kill_loses_or_doubles_a_score(Mode::V4, "judge", 0x9e37_79b9_7f4a_7c15).await;
}

#[tokio::test]
async fn no_kill_loses_or_doubles_a_score_of_langfuse_v3_and_anthropic() {
    no_kill_loses_or_doubles_a_score(Mode::V3, "judge-a", 0xd1b5_4a32_d192_ed03).await;
}

#[tokio::test]
async fn no_kill_loses_or_doubles_a_score_of_langfuse_v4_and_anthropic() {
    no_kill_loses_or_doubles_a_score(Mode::V4, "judge-a", 0x94d0_49bb_1331_11eb).await;
}

#[tokio::test]
async fn no_kill_loses_or_doubles_a_score_of_langfuse_v3_and_openai() {
    no_kill_loses_or_doubles_a_score(Mode::V3, "judge", 0xbf58_476d_1ce4_e5b9).await;
}
