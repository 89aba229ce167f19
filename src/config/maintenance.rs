//! `maintenance:`, of the settings and of a monitor.

use jiff::{civil, tz::TimeZone};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::{
    alerting::{maintenance::Maintenance, silence::Matcher},
    util::{
        duration::Human,
        yaml::{Fault, Section},
    },
};

/// A time of the week at which nobody is told of alerts.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct MaintenanceFile {
    /// Time of day, such as `22:00`.
    start: String,
    /// At most 7d.
    duration: Human,
    /// Days on which it begins. Default: every day.
    #[serde(default)]
    every: Vec<Day>,
    /// IANA. Default UTC.
    timezone: Option<String>,
    /// Such as `severity!=critical`; all have to fit. Default: all alerts.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    matchers: Vec<Matcher>,
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Day {
    #[serde(alias = "mon")]
    Monday,
    #[serde(alias = "tue")]
    Tuesday,
    #[serde(alias = "wed")]
    Wednesday,
    #[serde(alias = "thu")]
    Thursday,
    #[serde(alias = "fri")]
    Friday,
    #[serde(alias = "sat")]
    Saturday,
    #[serde(alias = "sun")]
    Sunday,
}

impl From<Day> for civil::Weekday {
    fn from(day: Day) -> Self {
        match day {
            Day::Monday => Self::Monday,
            Day::Tuesday => Self::Tuesday,
            Day::Wednesday => Self::Wednesday,
            Day::Thursday => Self::Thursday,
            Day::Friday => Self::Friday,
            Day::Saturday => Self::Saturday,
            Day::Sunday => Self::Sunday,
        }
    }
}

const LONGEST: Human = Human::days(7);

pub(super) fn read(written: Option<Vec<Section<MaintenanceFile>>>, faults: &mut Vec<Fault>) -> Vec<Maintenance> {
    written.unwrap_or_default().iter().filter_map(|section| window(section, faults)).collect()
}

fn window(section: &Section<MaintenanceFile>, faults: &mut Vec<Fault>) -> Option<Maintenance> {
    let file = section.read(faults)?;
    let before = faults.len();
    let mut wrong = |key: &str, message: String| faults.push(Fault::new(section.node.get(key).map_or(&section.node.at, |node| &node.at), message));
    let start = file.start.parse::<civil::Time>();
    if start.is_err() {
        wrong("start", format!("`{}` is no time of day; write it like `22:00`", file.start));
    }
    if file.duration < Human::mins(1) || file.duration > LONGEST {
        wrong("duration", format!("a maintenance lasts between 1m and {LONGEST}"));
    }
    let zone = match &file.timezone {
        None => Some(TimeZone::UTC),
        Some(name) => TimeZone::get(name).map_err(|_| wrong("timezone", crate::schedule::plan::unknown_zone(name))).ok(),
    };
    let (Ok(start), Some(zone)) = (start, zone) else { return None };
    let every = file.every.into_iter().map(Into::into).collect();
    (faults.len() == before).then_some(Maintenance { start, duration: file.duration.0, every, zone, matchers: file.matchers })
}
