//! The daily digest: one message a day, through restarts, with what fires first.

use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, SqliteConnection};

use crate::{
    build::{judge, quick, with},
    site::Site,
    world::Llm,
};

/// Where it is about noon, and the time there some minutes from now.
fn at(minutes: i64) -> Value {
    let now = Timestamp::now();
    let east = 12 - i64::from(now.to_zoned(TimeZone::UTC).hour());
    let zone = if east >= 0 { format!("Etc/GMT-{east}") } else { format!("Etc/GMT+{}", -east) };
    let there = (now + SignedDuration::from_mins(minutes)).to_zoned(TimeZone::get(&zone).unwrap());
    json!({ "at": there.strftime("%H:%M").to_string(), "timezone": zone, "notify": [{ "slack": "#llm-quality" }] })
}

/// As if all that was judged by now had been judged these hours ago.
async fn age(site: &Site, hours: i64) {
    let mut store = SqliteConnection::connect(&format!("sqlite://{}", site.path("state/assayd.db").display())).await.unwrap();
    let us = hours * 3_600_000_000;
    let sql = format!("UPDATE scores SET created_us = created_us - {us}; UPDATE items SET seen_us = seen_us - {us}, decided_us = decided_us - {us}");
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut store).await.unwrap();
}

fn verdict(llm: &Llm, of_bad: f64) {
    llm.verdict(move |prompt| if prompt.contains("[[item:bad") { of_bad } else { 1.0 });
}

#[tokio::test]
async fn a_digest_is_sent_once_a_day_with_the_change_since_the_day_before() {
    let mut site = Site::new().await;
    site.settings["notify"] = json!([{ "slack": "#llm-ops" }]);
    site.settings["digest"] = at(-1);
    site.save();
    let low = json!({ "name": "helpful-low", "metric": "helpful", "when": "mean < 0.9", "over": "90d", "notify": [{ "slack": "#llm-alerts" }] });
    let spec = with(quick(), json!({ "metrics": [judge()], "alerts": [low], "publish": [] }));
    site.monitor("m", &spec);
    site.monitor("paused", &with(spec, json!({ "enabled": false })));
    site.world.langfuse.add_many("bad", 20, SignedDuration::from_mins(60), SignedDuration::from_mins(20));
    verdict(&site.world.llm, 0.25);
    site.once("m").await;
    age(&site, 24).await;
    site.world.langfuse.add_many("good", 20, SignedDuration::from_mins(30), SignedDuration::from_mins(10));
    site.once("m").await;
    age(&site, 3).await;

    let of_day = |site: &Site| site.world.slack.messages().into_iter().filter(|message| message["channel"] == "#llm-quality").collect::<Vec<_>>();
    let daemon = site.daemon().await;
    site.wait("the digest", async || !of_day(&site).is_empty()).await;
    let text = of_day(&site)[0].to_string();
    for part in ["1 monitor, 1 alert fires", "helpful-low (m)", "*m*\\nhelpful: 1 (0.839 to 1), n 20, +0.75", "coverage 100 % of 20 items", "cost "] {
        assert!(text.contains(part), "no `{part}` in {text}");
    }
    assert!(text.find("*Firing*").unwrap() < text.find("*m*").unwrap(), "what fires comes first: {text}");
    assert!(!text.contains("paused"), "{text}");
    site.more_runs("m", 2).await;
    daemon.kill9().await;
    // Another time of the same day is the same day.
    site.settings["digest"] = at(-2);
    site.save();
    let _daemon = site.daemon().await;
    site.more_runs("m", 3).await;
    assert_eq!(of_day(&site).len(), 1);
}

#[tokio::test]
async fn a_digest_waits_for_its_time_and_goes_where_alerts_go() {
    let mut site = Site::new().await;
    site.settings["notify"] = json!([{ "slack": "#llm-ops" }]);
    site.settings["digest"] = at(60);
    site.settings["digest"].as_object_mut().unwrap().remove("notify");
    site.save();
    site.world.langfuse.add_some(3);
    site.monitor("m", &with(quick(), json!({ "publish": [] })));
    let daemon = site.daemon().await;
    site.more_runs("m", 2).await;
    assert!(site.world.slack.messages().is_empty(), "{:?}", site.world.slack.messages());
    assert_eq!(daemon.stop().await, Some(0));
    site.settings["digest"] = json!({ "at": "8 o'clock", "timezone": "Europe/Berlin" });
    site.save();
    let said = site.run(&["validate"]).await.expect(1).said();
    assert!(said.contains("assayd.yaml:") && said.contains("a time of day is written like `08:00`"), "{said}");
    site.settings["digest"] = at(-1);
    site.settings["digest"].as_object_mut().unwrap().remove("notify");
    site.save();
    let _daemon = site.daemon().await;
    site.until("the digest", |world| !world.slack.messages().is_empty()).await;
    let message = site.world.slack.messages()[0].clone();
    assert_eq!(message["channel"], "#llm-ops");
    assert!(message.to_string().contains("no alert fires"), "{message}");
}
