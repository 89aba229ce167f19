use jiff::{Timestamp, tz::TimeZone};
use serde_json::json;

use super::{Failure, Format, Overrides, monitor, print, settings_without_keys, table};
use crate::schedule::plan::Plan;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    monitor: String,
    /// How many slots
    #[arg(long, default_value_t = 5)]
    count: usize,
    /// Slots after this instant (RFC 3339) [default: now]
    #[arg(long)]
    from: Option<Timestamp>,
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

pub(super) fn next(overrides: &Overrides, arguments: &Arguments) -> Result<(), Failure> {
    let settings = settings_without_keys(overrides)?;
    let spec = monitor(&settings, &arguments.monitor)?;
    let plan = Plan::new(&spec.schedule, &spec.name).map_err(|fault| Failure::Usage(fault.message))?;
    let from = arguments.from.unwrap_or_else(Timestamp::now);
    let slots = std::iter::successors(plan.next_after(from), |slot| plan.next_after(*slot)).take(arguments.count);
    let local = |slot: Timestamp, zone: &TimeZone| format!("{:.0}", slot.display_with_offset(zone.to_offset(slot)));
    match arguments.format {
        Format::Json => {
            let slots: Vec<_> = slots.map(|slot| json!({ "utc": slot.to_string(), "local": local(slot, plan.zone()) })).collect();
            print(&format!("{}\n", json!(slots)))
        }
        Format::Table => {
            let mut table = table(&["UTC", plan.zone().iana_name().unwrap_or("local")]);
            for slot in slots {
                table.add_row([slot.to_string(), local(slot, plan.zone())]);
            }
            print(&format!("{table}\n"))
        }
    }
}
