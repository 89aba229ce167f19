use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use schemars::JsonSchema;
use serde::Deserialize;
use url::Url;

use super::{
    CacheSpec, Environment, EnvironmentSpec, HooksSpec, KeepSpec, NotifyTarget, Overrides, Routing, Switches,
    check::{only, place},
    gateway::budgets,
    maintenance::{self, MaintenanceFile},
    routing::{GroupKeys, RouteFile},
    switches::{self, Whose},
};
use crate::{
    connections::Connections,
    model::Budget,
    providers::{FallbackOn, Limits, ProviderConfig, ProviderKind, prices::Price},
    schedule::daily::Daily,
    util::{
        backoff::Policy,
        duration::Human,
        plugin, redact,
        secret::{ExposeSecret, SecretString},
        text,
        yaml::{self, Fault, Node, Section},
    },
};

/// assayd.yaml, checked. Every field has a default, so the file may be missing.
#[derive(Debug)]
pub struct Settings {
    /// Folder of the monitors.
    pub monitors: PathBuf,
    /// Folder of everything assayd writes.
    pub state: PathBuf,
    /// Address of API and metrics; `None` for `off`.
    pub listen: Option<std::net::SocketAddr>,
    pub auth: Option<AuthSpec>,
    pub log: LogSpec,
    pub concurrency: ConcurrencySpec,
    pub retention: RetentionSpec,
    pub retry: Policy,
    pub shutdown_grace: Human,
    /// To whom alerts go.
    pub routing: Routing,
    /// Where this daemon is for people, such as `https://assayd.example.com`.
    pub external_url: Option<Url>,
    /// Of all monitors, and of the daemon.
    pub watch: Switches,
    /// Once a day.
    pub digest: Option<Digest>,
    /// Pinged at the end of runs.
    pub heartbeat: Option<SecretString>,
    pub connections: Connections,
    pub providers: BTreeMap<String, ProviderSpec>,
    /// Over the shipped table.
    pub prices: BTreeMap<String, Price>,
    pub profiles: BTreeMap<String, ProfileSpec>,
    /// Of all monitors together, and of calls from outside.
    pub budget: Vec<Budget>,
    pub cache: CacheSpec,
    pub hooks: BTreeMap<String, HooksSpec>,
    /// The one that `ASSAYD_ENV` names.
    pub environment: Environment,
    /// Poll the monitors' folder instead of watching it (network mounts).
    pub poll: Option<Human>,
    /// Folder of the settings file: relative paths start here.
    pub base_dir: PathBuf,
}

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AuthSpec {
    /// Bearer token that clients must send. Without it only loopback clients are served.
    #[schemars(with = "String")]
    pub token: SecretString,
}

#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LogSpec {
    /// Of standard error. Default: pretty on a terminal, json elsewhere.
    pub format: Option<LogFormat>,
    /// A level (`info`) or a filter (`assayd=debug,sqlx=warn`). Default info.
    pub level: String,
    /// Folder of log files; none are written where this is missing.
    pub file: Option<PathBuf>,
    /// Default daily.
    pub rotation: Rotation,
    /// Rotated files kept. Default 14.
    pub keep: usize,
}

impl Default for LogSpec {
    fn default() -> Self {
        Self { format: None, level: "info".to_owned(), file: None, rotation: Rotation::Daily, keep: 14 }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    Pretty,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Rotation {
    Hourly,
    Daily,
    Weekly,
    Never,
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ConcurrencySpec {
    /// Runs at the same time. Default 16.
    pub runs: usize,
    /// Calls to models at the same time, over all monitors. Default 64.
    pub judge_calls: usize,
}

impl Default for ConcurrencySpec {
    fn default() -> Self {
        Self { runs: 16, judge_calls: 64 }
    }
}

#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RetentionSpec {
    /// Decisions other than scored, behind the watermark. Default 90d.
    pub decisions: Human,
    /// Scores and the keys of scored items. Default 400d.
    pub scores: Human,
    /// Default 90d.
    pub runs: Human,
}

impl Default for RetentionSpec {
    fn default() -> Self {
        Self { decisions: Human::days(90), scores: Human::days(400), runs: Human::days(90) }
    }
}

/// Retries of every outgoing call.
#[derive(Debug, Clone, Copy, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RetrySpec {
    /// Attempts in all. Default 7.
    pub attempts: u32,
    /// Default 60s.
    pub max_elapsed: Human,
}

impl Default for RetrySpec {
    fn default() -> Self {
        Self { attempts: 7, max_elapsed: Human::mins(1) }
    }
}

impl From<RetrySpec> for Policy {
    fn from(spec: RetrySpec) -> Self {
        Self { attempts: spec.attempts.max(1), max_elapsed: spec.max_elapsed.0, ..Self::default() }
    }
}

/// A message a day on all monitors.
#[derive(Debug)]
pub struct Digest {
    pub daily: Daily,
    /// Empty: the settings' `notify`.
    pub notify: Vec<NotifyTarget>,
}

/// `digest:`, as written.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct DigestFile {
    /// Time of day, like `08:00`.
    at: String,
    /// IANA zone of that time. Default UTC.
    timezone: Option<String>,
    /// Where it goes. Default: the settings' `notify`.
    #[serde(default)]
    notify: Vec<NotifyTarget>,
}

/// An entry of `providers:`.
#[derive(Debug)]
pub struct ProviderSpec {
    pub config: Arc<dyn ProviderConfig>,
    /// Its type, and its address where one is written: whom an answer is of.
    pub origin: String,
    pub limits: Limits,
}

/// The keys that all providers share.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct ProviderCommon {
    limits: Limits,
}

/// What a monitor names in `model:`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProfileSpec {
    /// An entry of `providers:`.
    pub provider: String,
    pub model: String,
    /// Sent only where it is set: many models refuse it.
    pub temperature: Option<f64>,
    /// Of the answer. Default 1024.
    pub max_tokens: Option<u32>,
    /// Put before every prompt.
    pub system: Option<String>,
    /// Of one attempt. Default 60s.
    pub timeout: Option<Human>,
    /// Besides the provider's.
    #[serde(default)]
    pub limits: Limits,
    /// Profiles that are asked where this one cannot answer, in this order.
    #[serde(default)]
    pub fallback: Vec<String>,
    /// When they are asked. Default: both.
    #[serde(default)]
    pub fallback_on: Vec<FallbackOn>,
    /// Keep its answers. Default: they are not kept.
    pub cache: Option<KeepSpec>,
    /// An entry of `hooks:`. Default: the environment's.
    pub hooks: Option<String>,
    /// What is taken out of every text before it leaves the machine.
    #[serde(default)]
    pub redact: Vec<redact::Kind>,
}

/// Keys of an entry of `providers:` that are not its kind's.
pub(super) const PROVIDER_COMMON: [&str; 1] = ["limits"];

/// The file as written; [`Settings`] is what it means.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "assayd.yaml")]
pub(super) struct File {
    /// Folder of the monitors. Default `monitors`.
    monitors: Option<PathBuf>,
    /// Folder of everything assayd writes. Default `state`.
    state: Option<PathBuf>,
    /// Where state is kept: `sqlite`, a file in the state folder.
    database: Option<Section<Database>>,
    /// Address of API and metrics, or `off`. Default `127.0.0.1:8484`.
    listen: Option<Section<String>>,
    auth: Option<Section<AuthSpec>>,
    log: Option<Section<LogSpec>>,
    concurrency: Option<Section<ConcurrencySpec>>,
    retention: Option<Section<RetentionSpec>>,
    retry: Option<Section<RetrySpec>>,
    /// What runs get to finish in when the daemon stops. Default 30s.
    shutdown_grace: Option<Section<Human>>,
    /// Where alerts without their own `notify` go; without it, to the log.
    notify: Option<Section<Vec<NotifyTarget>>>,
    /// To whom alerts without their own `notify` go, by their labels: the first route that fits.
    routes: Option<Vec<Section<RouteFile>>>,
    /// Labels whose values alerts have to share to be told in one message; `...` for each by itself. Default `[monitor]`.
    group_by: Option<Section<Vec<String>>>,
    /// How long the first alert of a group waits for others. Default 0s: a run's alerts are together anyway.
    group_wait: Option<Section<Human>>,
    /// At least so long between two messages of a group that is not over. Default 0s.
    group_interval: Option<Section<Human>>,
    /// Times of the week at which nobody is told of alerts.
    maintenance: Option<Vec<Section<MaintenanceFile>>>,
    /// Where this daemon is for people, such as `https://assayd.example.com`: messages link to it.
    external_url: Option<Section<String>>,
    /// Switches of the alerts that are on by default, such as `no-data: false`; a monitor's own `watch` comes before it.
    watch: Option<Section<Switches>>,
    /// Once a day: each monitor's means, their change, coverage and cost, and the alerts that fire.
    digest: Option<Section<DigestFile>>,
    /// Address of a watcher (healthchecks.io and kin): pinged after runs that did their work and whose scores leave, `/start`
    /// when the daemon begins, `/fail` when it does not work.
    #[schemars(with = "Option<String>")]
    heartbeat: Option<Section<SecretString>>,
    /// Named services, used by sources, sinks and alerts.
    connections: Option<Section<Connections>>,
    /// Where models are called.
    #[serde(default)]
    #[schemars(schema_with = "super::schema::providers")]
    providers: Option<BTreeMap<String, Node>>,
    /// USD per token, over the shipped table.
    prices: Option<Section<BTreeMap<String, Price>>>,
    /// What a monitor names in `model:`.
    profiles: Option<BTreeMap<String, Section<ProfileSpec>>>,
    /// Where answers are kept, for profiles with a `cache`: `sqlite` or `redis://...`. Default: the store.
    cache: Option<Section<CacheSpec>>,
    /// Sets of hooks, which profiles and environments name.
    hooks: Option<BTreeMap<String, Section<HooksSpec>>>,
    /// Chosen by `ASSAYD_ENV`.
    environments: Option<Section<BTreeMap<String, EnvironmentSpec>>>,
    /// What all monitors together and calls from outside may spend; one budget, or a list of them.
    #[schemars(with = "Option<Vec<Budget>>")]
    budget: Option<Section<Budgets>>,
    /// Look at the monitors' folder this often instead of watching it: for network mounts.
    poll: Option<Section<Human>>,
}

#[derive(Debug, Default, Deserialize)]
struct Budgets(#[serde(deserialize_with = "budgets")] Vec<Budget>);

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Database {
    Sqlite,
}

fn auth(section: &Section<AuthSpec>, faults: &mut Vec<Fault>) -> Option<AuthSpec> {
    let spec = section.read(faults)?;
    if spec.token.expose_secret().trim().is_empty() {
        let at = section.node.get("token").map_or(&section.node.at, |node| &node.at);
        faults.push(Fault::new(at, "the token is empty, so nobody could be told from anybody; leave `auth` out to serve loopback clients only"));
    }
    Some(spec)
}

fn environment(
    written: &Section<BTreeMap<String, EnvironmentSpec>>,
    profiles: &BTreeMap<String, ProfileSpec>,
    hooks: &BTreeMap<String, HooksSpec>,
    faults: &mut Vec<Fault>,
) -> Option<Environment> {
    let environments = written.read(faults)?;
    for (name, environment) in &environments {
        let at = |key: &str| written.node.get(name).and_then(|node| node.get(key)).map_or(&written.node.at, |node| &node.at);
        if let Some(profile) = environment.profile.as_ref().filter(|profile| !profiles.contains_key(*profile)) {
            faults.push(Fault::new(at("profile"), format!("`{profile}` is no profile{}", near(profile, profiles.keys()))));
        }
        if let Some(set) = environment.hooks.as_ref().filter(|set| !hooks.contains_key(*set)) {
            faults.push(Fault::new(at("hooks"), format!("`hooks` has no `{set}`{}", near(set, hooks.keys()))));
        }
    }
    match super::gateway::chosen(&environments, std::env::var("ASSAYD_ENV").ok().as_deref()) {
        Ok(environment) => Some(environment),
        Err(message) => {
            faults.push(Fault::new(&written.node.at, message));
            None
        }
    }
}

/// `, did you mean ...?`, or nothing.
fn near<'a>(word: &str, known: impl Iterator<Item = &'a String>) -> String {
    text::nearest(word, known.map(String::as_str)).map(|near| format!(", did you mean `{near}`?")).unwrap_or_default()
}

fn providers(nodes: BTreeMap<String, Node>, faults: &mut Vec<Fault>) -> BTreeMap<String, ProviderSpec> {
    let mut providers = BTreeMap::new();
    for (name, node) in nodes {
        let common: Option<ProviderCommon> = yaml::read(&only(&node, &PROVIDER_COMMON), faults);
        let block = plugin::read_block(&node, &PROVIDER_COMMON, inventory::iter::<ProviderKind>().collect(), "provider", faults);
        if let (Some(common), Some((kind, config))) = (common, block) {
            let address = node.get("base_url").and_then(Node::as_str).unwrap_or_default().trim_end_matches('/');
            providers.insert(name, ProviderSpec { config: config.into(), origin: format!("{kind} {address}"), limits: common.limits });
        }
    }
    providers
}

fn profiles(
    sections: BTreeMap<String, Section<ProfileSpec>>,
    providers: &BTreeMap<String, ProviderSpec>,
    hooks: &BTreeMap<String, HooksSpec>,
    faults: &mut Vec<Fault>,
) -> BTreeMap<String, ProfileSpec> {
    let names: Vec<String> = sections.keys().cloned().collect();
    let mut profiles = BTreeMap::new();
    for (name, profile) in sections {
        let Some(spec) = profile.read(faults) else { continue };
        let at = |key: &str| profile.node.get(key).map_or(&profile.node.at, |node| &node.at);
        if !providers.contains_key(&spec.provider) {
            let known = providers.keys().map(|known| format!("`{known}`")).collect::<Vec<_>>().join(", ");
            let known = if known.is_empty() { "add it under `providers`".to_owned() } else { format!("`providers` has {known}") };
            faults.push(Fault::new(at("provider"), format!("there is no provider `{}`: {known}", spec.provider)));
        }
        for fallback in spec.fallback.iter().filter(|fallback| !names.contains(fallback) || **fallback == name) {
            let hint = near(fallback, names.iter().filter(|other| **other != name));
            faults.push(Fault::new(at("fallback"), format!("`{fallback}` is no other profile{hint}")));
        }
        if let Some(set) = spec.hooks.as_ref().filter(|set| !hooks.contains_key(*set)) {
            faults.push(Fault::new(at("hooks"), format!("`hooks` has no `{set}`{}", near(set, hooks.keys()))));
        }
        profiles.insert(name, spec);
    }
    profiles
}

/// Where everything is kept, by what `state` says.
pub(super) fn state_folder(named: Option<PathBuf>, base: &Path, overrides: &Overrides) -> PathBuf {
    overrides.state.clone().unwrap_or_else(|| base.join(named.unwrap_or_else(|| "state".into())))
}

/// Reads every section on its own, so that each fault is told. `None` after at least one fault.
pub(super) fn read(tree: &Node, base: &Path, overrides: &Overrides, faults: &mut Vec<Fault>) -> Option<Settings> {
    fn section<T: serde::de::DeserializeOwned>(section: Option<Section<T>>, faults: &mut Vec<Fault>) -> Option<T> {
        section.and_then(|section| section.read(faults))
    }
    let file: File = yaml::read(tree, faults)?;
    section(file.database, faults);
    let listen = match &file.listen {
        None => Some(([127, 0, 0, 1], 8484).into()),
        Some(listen) => listen.read(faults).and_then(|text| match text.parse() {
            Ok(address) => Some(address),
            Err(_) if text == "off" => None,
            Err(_) => {
                faults.push(Fault::new(&listen.node.at, format!("`{text}` is no address; write it like `127.0.0.1:8484`, or `off`")));
                None
            }
        }),
    };
    let hooks: BTreeMap<String, HooksSpec> = file.hooks.unwrap_or_default().into_iter().filter_map(|(name, hooks)| Some((name, hooks.read(faults)?))).collect();
    let providers = providers(file.providers.unwrap_or_default(), faults);
    let profiles = profiles(file.profiles.unwrap_or_default(), &providers, &hooks, faults);
    let environment = file.environments.as_ref().and_then(|section| environment(section, &profiles, &hooks, faults)).unwrap_or_default();
    let relative = |path: PathBuf| if path.is_absolute() { path } else { base.join(path) };
    let mut log = section(file.log, faults).unwrap_or_default();
    if let Some(level) = &overrides.log_level {
        log.level.clone_from(level);
    }
    log.file = log.file.map(relative);
    let connections = section(file.connections, faults).unwrap_or_default();
    let targets = file.notify.map(|section| notify(&section, &connections, faults)).unwrap_or_default();
    let keys = GroupKeys { by: section(file.group_by, faults), wait: section(file.group_wait, faults), interval: section(file.group_interval, faults) };
    let mut routing = Routing::read(targets, keys, file.routes, &connections, faults);
    routing.maintenance = maintenance::read(file.maintenance, faults);
    Some(Settings {
        monitors: overrides.monitors.clone().unwrap_or_else(|| relative(file.monitors.unwrap_or_else(|| "monitors".into()))),
        state: state_folder(file.state, base, overrides),
        listen,
        auth: file.auth.and_then(|section| auth(&section, faults)),
        log,
        concurrency: section(file.concurrency, faults).unwrap_or_default(),
        retention: section(file.retention, faults).unwrap_or_default(),
        retry: section(file.retry, faults).unwrap_or_default().into(),
        shutdown_grace: section(file.shutdown_grace, faults).unwrap_or(Human::secs(30)),
        heartbeat: section(file.heartbeat, faults),
        routing,
        external_url: file.external_url.and_then(|section| external_url(&section, faults)),
        watch: switches::read(file.watch.as_ref(), Whose::Daemon, faults),
        digest: file.digest.as_ref().and_then(|section| digest(section, &connections, faults)),
        connections,
        providers,
        prices: section(file.prices, faults).unwrap_or_default(),
        profiles,
        budget: section(file.budget, faults).unwrap_or_default().0,
        cache: section(file.cache, faults).unwrap_or_default(),
        hooks,
        environment,
        poll: section(file.poll, faults),
        base_dir: base.to_owned(),
    })
}

fn external_url(section: &Section<String>, faults: &mut Vec<Fault>) -> Option<Url> {
    let text = section.read(faults)?;
    let url = Url::parse(&text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
    if url.is_none() {
        faults.push(Fault::new(&section.node.at, format!("`{text}` is no address; write it like `https://assayd.example.com`")));
    }
    url
}

fn digest(section: &Section<DigestFile>, connections: &Connections, faults: &mut Vec<Fault>) -> Option<Digest> {
    let DigestFile { at, timezone, notify } = section.read(faults)?;
    faults.extend(notify.iter().filter_map(|target| Some(Fault::new(place(&section.node, "notify"), target.check(connections).err()?))));
    match Daily::new(&at, timezone.as_deref()) {
        Ok(daily) => Some(Digest { daily, notify }),
        Err(fault) => {
            faults.push(Fault::new(place(&section.node, fault.key), fault.message));
            None
        }
    }
}

fn notify(section: &Section<Vec<NotifyTarget>>, connections: &Connections, faults: &mut Vec<Fault>) -> Vec<NotifyTarget> {
    let targets = section.read(faults).unwrap_or_default();
    faults.extend(targets.iter().filter_map(|target| Some(Fault::new(&section.node.at, target.check(connections).err()?))));
    targets
}
