use std::sync::Arc;

use serde::Serialize;

use super::{Failure, Format, Overrides, block_on, print, settings, table};
use crate::{daemon::wire, providers::prices::Prices, schedule::clock::SystemClock, util::text};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// A profile, and whether its model answers.
#[derive(Debug, Serialize)]
struct Line {
    profile: String,
    provider: String,
    model: String,
    reachable: bool,
    /// Whether the provider lists the model; absent where it lists none, or did not answer.
    listed: Option<bool>,
    error: Option<String>,
    /// USD for a million tokens.
    input_usd: Option<f64>,
    output_usd: Option<f64>,
    fallback: Vec<String>,
}

pub(super) fn models(overrides: &Overrides, arguments: &Arguments) -> Result<(), Failure> {
    let settings = settings(overrides)?;
    let prices = Prices::of(&settings.prices, settings.profiles.values().map(|profile| (profile.provider.as_str(), profile.model.as_str())));
    let listings = block_on(async {
        let http = wire::http(&settings)?;
        let (gateway, _) = wire::gateway(&settings, &http, None, Arc::new(SystemClock))?;
        let probes = settings.providers.keys().map(|name| {
            let gateway = &gateway;
            async move { (name.clone(), gateway.probe(name).await) }
        });
        Ok(futures_util::future::join_all(probes).await.into_iter().collect::<std::collections::BTreeMap<_, _>>())
    })?;
    let lines: Vec<Line> = settings
        .profiles
        .iter()
        .map(|(name, profile)| {
            let listing = listings.get(&profile.provider);
            let known = listing.and_then(|listing| listing.as_ref().ok()).filter(|models| !models.is_empty());
            let price = prices.get(&profile.provider, &profile.model);
            Line {
                profile: name.clone(),
                provider: profile.provider.clone(),
                model: profile.model.clone(),
                reachable: listing.is_some_and(Result::is_ok),
                listed: known.map(|models| models.iter().any(|model| *model == profile.model || model.strip_suffix(":latest") == Some(&profile.model))),
                error: listing.and_then(|listing| listing.as_ref().err()).map(|error| text::one_line(&error.to_string(), 200)),
                input_usd: price.map(|price| price.input_cost_per_token * 1e6),
                output_usd: price.map(|price| price.output_cost_per_token * 1e6),
                fallback: profile.fallback.clone(),
            }
        })
        .collect();
    match arguments.format {
        Format::Json => print(&format!("{}\n", serde_json::to_string(&lines).map_err(anyhow::Error::from)?))?,
        Format::Table => print(&shown(&lines))?,
    }
    if lines.iter().all(|line| line.reachable) { Ok(()) } else { Err(Failure::Problems) }
}

fn shown(lines: &[Line]) -> String {
    let price = |usd: Option<f64>| usd.map_or_else(|| "not known".to_owned(), |usd| format!("{usd:.2}"));
    let mut table = table(&["profile", "model", "state", "USD/M in", "USD/M out", "fallback"]);
    for line in lines {
        let state = match (&line.error, line.listed) {
            (Some(error), _) => error.clone(),
            (None, Some(false)) => "answers, but does not list the model".to_owned(),
            (None, _) => "answers".to_owned(),
        };
        let model = format!("{}/{}", line.provider, line.model);
        table.add_row([line.profile.clone(), model, state, price(line.input_usd), price(line.output_usd), line.fallback.join(", ")]);
    }
    format!("{table}\n")
}
