//! `assayd silence`: alerts that people do not want to hear of for a while.

use jiff::{SignedDuration, Timestamp};
use serde_json::json;

use super::{Failure, Format, Overrides, block_on, daemon_answer, print, settings, settings_without_keys, table};
use crate::{
    alerting::silence::{LONGEST_DAYS, Matcher, Silence},
    config::Settings,
    control::SilenceOrder,
    daemon,
    store::{
        Store,
        lock::{Holder, LockError, StateLock},
    },
    util::{duration::Human, text::one_line},
};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Action {
    /// Mute alerts for a while; prints the silence's id
    Add {
        /// How long, such as 2h
        #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
        length: Human,
        /// From when (RFC 3339) [default: now]
        #[arg(long)]
        from: Option<Timestamp>,
        /// Why
        #[arg(long)]
        comment: String,
        /// Who [default: the user's name]
        #[arg(long, env = "USER", default_value = "unknown")]
        author: String,
        /// alertname=, monitor=, metric=, severity=, a label of the monitor or of an alert's `by`; = != =~ !~; all have to fit
        #[arg(required = true)]
        matchers: Vec<Matcher>,
    },
    /// Silences that have not ended
    List {
        /// Those that have ended too
        #[arg(long)]
        expired: bool,
        #[arg(long, value_enum, default_value_t = Format::Table)]
        format: Format,
    },
    /// End a silence now
    Expire { id: String },
}

const LONGEST: Human = Human::days(LONGEST_DAYS.unsigned_abs());

fn duration(text: &str) -> Result<Human, String> {
    let length = Human(crate::util::duration::parse(text)?);
    if length < Human::secs(1) || length > LONGEST { Err(format!("between 1s and {LONGEST}")) } else { Ok(length) }
}

pub(super) fn silence(overrides: &Overrides, action: Action) -> Result<(), Failure> {
    match action {
        Action::Add { length, from, comment, author, matchers } => {
            let starts = from.unwrap_or_else(Timestamp::now);
            let ends =
                starts.checked_add(SignedDuration::from_millis(length.millis())).map_err(|_| Failure::Usage("that lies beyond the calendar".to_owned()))?;
            let id = uuid::Uuid::now_v7().to_string();
            let silence = Silence { id, matchers, starts, ends, author: one_line(&author, 100), comment: one_line(&comment, 500) };
            done(overrides, &SilenceOrder::Add(silence.clone()))?;
            print(&format!("{}\n", silence.id))
        }
        Action::Expire { id } => {
            if !done(overrides, &SilenceOrder::Expire(id.clone(), Timestamp::now()))? {
                return Err(Failure::Usage(format!("there is no silence `{}` that has not ended", one_line(&id, 80))));
            }
            Ok(())
        }
        Action::List { expired, format } => list(overrides, expired, format),
    }
}

/// By the daemon where there is one: one process writes.
fn done(overrides: &Overrides, order: &SilenceOrder) -> Result<bool, Failure> {
    let settings = settings(overrides)?;
    let me = Holder { pid: std::process::id(), command: "assayd silence".to_owned(), listen: None };
    match StateLock::take(&settings.state, &me) {
        Ok(lock) => {
            let done = block_on(async { Ok(daemon::silence(&settings, order).await?) })?;
            drop(lock);
            Ok(done)
        }
        Err(LockError::Held(_, Holder { listen: Some(address), .. })) => block_on(daemon_answer(&settings, &address, "/api/v1/silences", order)),
        Err(error) => Err(Failure::Usage(error.to_string())),
    }
}

fn list(overrides: &Overrides, expired: bool, format: Format) -> Result<(), Failure> {
    let settings: Settings = settings_without_keys(overrides)?;
    let now = Timestamp::now();
    let rows = block_on(async {
        // Before the first run there is none.
        let Ok(store) = Store::open_to_read(&settings.state).await else { return Ok(Vec::new()) };
        Ok(store.silences(if expired { i64::MIN } else { now.as_microsecond() }).await?)
    })?;
    let silences: Vec<Silence> = rows.iter().filter_map(|row| Silence::read(&row.body, row.starts_us, row.ends_us)).collect();
    match format {
        Format::Json => {
            let all: Vec<_> = silences
                .iter()
                .map(|one| json!({ "id": one.id, "state": one.state(now), "matchers": one.matchers, "starts": one.starts, "ends": one.ends, "author": one.author, "comment": one.comment }))
                .collect();
            print(&format!("{}\n", json!(all)))
        }
        Format::Table => {
            let mut shown = table(&["id", "state", "matchers", "until", "author", "comment"]);
            for one in &silences {
                let matchers = one.matchers.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
                let ends = one.ends.strftime("%Y-%m-%d %H:%M UTC").to_string();
                shown.add_row([
                    one.id.clone(),
                    one.state(now).to_owned(),
                    one_line(&matchers, 120),
                    ends,
                    one_line(&one.author, 40),
                    one_line(&one.comment, 120),
                ]);
            }
            print(&format!("{shown}\n"))
        }
    }
}
