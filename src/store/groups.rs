//! Messages to people, by group: what happened waits as notices, what people know stands in the group.

use std::collections::BTreeSet;

use sqlx::{Row, SqliteConnection, sqlite::SqliteRow};

use super::{
    Closed, DueGroup, GroupTold, NewNotice, Store, TellingEnd, Told,
    apply::json,
    read::{Result, sql},
    writer::Write,
};
use crate::model::{AlertEvent, Group, Route};

/// Of group `g`: its receiver is not among those of the first parameter.
const FREE: &str = "g.route NOT IN (SELECT value FROM json_each($1))";

/// As they stand in the table.
fn routes(of: &BTreeSet<Route>) -> Result<String> {
    json(&of.iter().map(json).collect::<Result<Vec<String>>>()?)
}

/// Of group `g`: something waits to be told.
const WAITS: &str = "EXISTS (SELECT 1 FROM notices n WHERE n.grp = g.id AND n.state = 0)";

impl Store {
    /// Who was told of a firing, in which groups (settings may have changed since it began), and what, last.
    ///
    /// # Errors
    /// The database's; what no longer reads is left out.
    pub async fn told(&self, fingerprint: &str) -> Result<Vec<(Group, AlertEvent)>> {
        let text = "SELECT n.event, g.* FROM notices n JOIN alert_groups g ON g.id = n.grp
            WHERE n.id IN (SELECT max(id) FROM notices WHERE fingerprint = $1 GROUP BY grp) ORDER BY n.id";
        let rows = sqlx::query(text).bind(fingerprint).fetch_all(&self.read).await?;
        let told = |row: &SqliteRow| Ok(group(row)?.zip(serde_json::from_str(row.try_get("event")?).ok()));
        rows.iter().filter_map(|row| told(row).transpose()).collect()
    }

    /// Groups that may be told something now, the longest due first, at most so many of each receiver, and none of those that are busy.
    ///
    /// # Errors
    /// The database's.
    pub async fn due_groups(&self, now_us: i64, busy: &BTreeSet<Route>, each: u32) -> Result<Vec<DueGroup>> {
        let text = format!(
            "SELECT * FROM (SELECT g.*, row_number() OVER (PARTITION BY g.route ORDER BY g.due_us, g.id) AS place FROM alert_groups g
                WHERE g.due_us <= $2 AND {WAITS} AND {FREE}) WHERE place <= $3 ORDER BY due_us, id"
        );
        let rows = sqlx::query(sql(text)).bind(routes(busy)?).bind(now_us).bind(each).fetch_all(&self.read).await?;
        let mut due = Vec::with_capacity(rows.len());
        for row in rows {
            let id: i64 = row.try_get("id")?;
            let Some(group) = group(&row)? else {
                tracing::error!(group = id, "to whom an alert goes no longer reads; it is not told");
                continue;
            };
            due.push(DueGroup {
                id,
                group,
                // Whoever cannot be read is told anew.
                members: serde_json::from_str(row.try_get("members")?).unwrap_or_default(),
                waiting: self.waiting(id, row.try_get("upto")?).await?,
                told: Told { thread: row.try_get("thread")?, pages: count(&row, "pages")?, unsure_us: row.try_get("unsure_us")? },
                attempts: count(&row, "attempts")?,
            });
        }
        Ok(due)
    }

    async fn waiting(&self, group: i64, upto: Option<i64>) -> Result<Vec<(i64, Option<AlertEvent>)>> {
        let text = "SELECT id, event FROM notices WHERE grp = $1 AND state = 0 AND ($2 IS NULL OR id <= $2) ORDER BY id";
        let rows: Vec<(i64, String)> = sqlx::query_as(text).bind(group).bind(upto).fetch_all(&self.read).await?;
        Ok(rows.into_iter().map(|(id, event)| (id, serde_json::from_str(&event).ok())).collect())
    }

    /// When the next group of a receiver that is not busy may be told something.
    ///
    /// # Errors
    /// The database's.
    pub async fn next_telling_us(&self, busy: &BTreeSet<Route>) -> Result<Option<i64>> {
        let text = format!("SELECT min(g.due_us) FROM alert_groups g WHERE {WAITS} AND {FREE}");
        sqlx::query_scalar(sql(text)).bind(routes(busy)?).fetch_one(&self.read).await
    }

    /// How far telling a group has come.
    ///
    /// # Errors
    /// `Closed`.
    pub async fn record_told(&self, told: GroupTold) -> std::result::Result<(), Closed> {
        self.write(Write::Told(told)).await.map(|_| ())
    }
}

fn count(row: &SqliteRow, name: &str) -> Result<u32> {
    Ok(u32::try_from(row.try_get::<i64, _>(name)?).unwrap_or(u32::MAX))
}

/// `None` where it no longer reads.
fn group(row: &SqliteRow) -> Result<Option<Group>> {
    let (route, labels): (&str, &str) = (row.try_get("route")?, row.try_get("labels")?);
    let (Ok(route), Ok(labels)) = (serde_json::from_str(route), serde_json::from_str(labels)) else { return Ok(None) };
    Ok(Some(Group { route, labels, key: row.try_get("key")?, wait_us: row.try_get("wait_us")?, interval_us: row.try_get("interval_us")? }))
}

/// What happened waits for its group: as long as that waits for others where people know of nothing yet, else until enough time has
/// passed since they were last told.
pub(super) async fn insert(db: &mut SqliteConnection, notice: &NewNotice, at_us: i64) -> Result<()> {
    let NewNotice { group, event } = notice;
    let route = json(&group.route)?;
    let upsert = "INSERT INTO alert_groups (key, route, labels, wait_us, interval_us, due_us) VALUES ($1, $2, $3, $4, $5, $6 + $4)
        ON CONFLICT (key) DO UPDATE SET wait_us = excluded.wait_us, interval_us = excluded.interval_us, due_us = CASE
            WHEN EXISTS (SELECT 1 FROM notices n WHERE n.grp = alert_groups.id AND n.state = 0) THEN alert_groups.due_us
            WHEN alert_groups.members = '[]' THEN excluded.due_us
            ELSE max($6, coalesce(alert_groups.told_us, 0) + excluded.interval_us) END
        RETURNING id";
    let id: i64 = sqlx::query_scalar(upsert)
        .bind(&group.key)
        .bind(&route)
        .bind(json(&group.labels)?)
        .bind(group.wait_us)
        .bind(group.interval_us)
        .bind(at_us)
        .fetch_one(&mut *db)
        .await?;
    let sql = "INSERT INTO notices (fingerprint, route, event, created_us, grp) VALUES ($1, $2, $3, $4, $5)";
    sqlx::query(sql).bind(&event.fingerprint).bind(route).bind(json(event)?).bind(at_us).bind(id).execute(db).await.map(drop)
}

pub(super) async fn told(db: &mut SqliteConnection, told: &GroupTold) -> Result<u64> {
    match &told.end {
        TellingEnd::Begun => {
            let sql = "UPDATE alert_groups SET upto = $1, unsure_us = coalesce(unsure_us, $2) WHERE id = $3";
            sqlx::query(sql).bind(told.notices.last()).bind(told.at_us).bind(told.group).execute(db).await?;
        }
        TellingEnd::Delivered { thread, members } => {
            close(db, told, 1, None).await?;
            let sql = "UPDATE alert_groups SET thread = $1, members = $2, told_us = $3 WHERE id = $4";
            sqlx::query(sql).bind(thread).bind(json(members)?).bind(told.at_us).bind(told.group).execute(db).await?;
        }
        TellingEnd::Dead { error, members } => {
            close(db, told, 2, Some(error)).await?;
            let sql = "UPDATE alert_groups SET members = $1, thread = CASE WHEN $1 <> '[]' THEN thread END WHERE id = $2";
            sqlx::query(sql).bind(json(members)?).bind(told.group).execute(db).await?;
        }
        TellingEnd::Again { failure, told: so_far } => {
            // What happens meanwhile joins a message of which nothing was taken.
            let sql = "UPDATE alert_groups SET attempts = attempts + 1, due_us = $1, error = $2, thread = $3, pages = $4, unsure_us = $5,
                upto = CASE WHEN $4 > 0 OR $5 IS NOT NULL THEN upto END WHERE id = $6";
            sqlx::query(sql)
                .bind(failure.next_us)
                .bind(&failure.error)
                .bind(&so_far.thread)
                .bind(so_far.pages)
                .bind(so_far.unsure_us)
                .bind(told.group)
                .execute(db)
                .await?;
        }
    }
    Ok(0)
}

/// Nothing more is tried of this message; what happened since is due after the group's interval.
async fn close(db: &mut SqliteConnection, told: &GroupTold, state: i64, error: Option<&str>) -> Result<()> {
    let sql = "UPDATE notices SET state = $1, error = $2 WHERE id IN (SELECT value FROM json_each($3))";
    sqlx::query(sql).bind(state).bind(error).bind(json(&told.notices)?).execute(&mut *db).await?;
    let sql = "UPDATE alert_groups SET attempts = 0, error = $1, upto = NULL, pages = 0, unsure_us = NULL, due_us = $2 + interval_us WHERE id = $3";
    sqlx::query(sql).bind(error).bind(told.at_us).bind(told.group).execute(db).await.map(drop)
}
