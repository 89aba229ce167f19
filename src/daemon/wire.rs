//! Settings -> parts that work together. The only place that builds plug-ins for real.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, anyhow};
use tokio::sync::{mpsc, watch};
use url::Url;

use super::heartbeat::Heartbeat;
use crate::{
    config::{HookSpec, HooksSpec, MetricSpec, MonitorSpec, Settings},
    connections::Langfuse,
    gateway::{self, Gateway, GatewaySpec, Hook, Hooks, Keep, ProfileSpec, ProviderSpec, Runner, Shelf},
    metrics::{
        self,
        exec::{self, Processes},
    },
    pipeline::{BuildEnv, Couriers, Monitor, Services},
    prompts::{Keeper, Prompts, PromptsCx, Use},
    schedule::clock::{Clock, SystemClock},
    sinks::{
        NoRuns, Runs,
        receivers::{AlertmanagerNotifier, EmailNotifier, PagerdutyNotifier, WebhookNotifier},
        slack::SlackNotifier,
    },
    store::{Store, Writer},
    util::{http::Http, secret::ExposeSecret},
};

/// Everything that runs need, wired.
pub struct World {
    pub settings: Arc<Settings>,
    pub services: Services,
    pub couriers: Arc<Couriers>,
    pub gateway: Arc<Gateway>,
    pub prompts: Prompts,
    /// Of metrics that have one.
    pub processes: Processes,
    pub heartbeat: Option<Heartbeat>,
    http: Http,
}

/// What the caller of [`World::open`] has to run.
pub struct Hands {
    pub writer: Writer,
    /// Of hooks.
    pub runner: Runner,
    /// Where it is not run, prompts are looked at when they are needed.
    pub keeper: Keeper,
    /// Where they are not run, no metric has a process.
    pub processes: mpsc::UnboundedReceiver<exec::Keeper>,
}

/// Makes known whoever tells people.
///
/// # Errors
/// When a connection's settings cannot be used.
pub fn notifiers(settings: &Settings, http: &Http, couriers: &Couriers) -> anyhow::Result<()> {
    let connections = &settings.connections;
    for (name, connection) in &connections.slack {
        if connection.token.is_some() || connection.webhook_url.is_some() {
            let notifier = SlackNotifier::new(connection, settings.external_url.as_ref()).map_err(|error| anyhow!("slack connection `{name}`: {error}"))?;
            couriers.set_notifier("slack", name, Arc::new(notifier));
        }
    }
    for (name, connection) in &connections.webhook {
        couriers.set_notifier(
            "webhook",
            name,
            Arc::new(WebhookNotifier::new(connection, http.clone(), settings.external_url.as_ref().map_or("", Url::as_str))),
        );
    }
    for (name, connection) in &connections.alertmanager {
        couriers.set_notifier("alertmanager", name, Arc::new(AlertmanagerNotifier::new(connection, http.clone())));
    }
    for (name, connection) in &connections.email {
        let notifier = EmailNotifier::new(connection).map_err(|error| anyhow!("email connection `{name}`: {error}"))?;
        couriers.set_notifier("email", name, Arc::new(notifier));
    }
    for (name, connection) in &connections.pagerduty {
        couriers.set_notifier("pagerduty", name, Arc::new(PagerdutyNotifier::new(connection, http.clone())));
    }
    Ok(())
}

impl World {
    /// Opens the store and builds what all monitors share.
    ///
    /// # Errors
    /// When the store cannot be opened or a connection's settings cannot be used.
    pub async fn open(settings: Arc<Settings>, clock: Arc<dyn Clock>) -> anyhow::Result<(Self, Hands)> {
        let (store, writer) = Store::open(&settings.state).await?;
        let http = http(&settings)?;
        let (gateway, runner) = gateway(&settings, &http, Some(store.clone()), Arc::clone(&clock))?;
        let gateway = Arc::new(gateway);
        let couriers = Arc::new(Couriers::default());
        notifiers(&settings, &http, &couriers)?;
        let heartbeat = settings.heartbeat.clone().map(|url| Heartbeat::new(url, &http));
        let routing = Arc::new(settings.routing.clone());
        let services = Services { store, clock, outbox: Arc::new(watch::Sender::new(())), routing };
        let (prompts, keeper) = Prompts::new(PromptsCx {
            connections: &settings.connections.langfuse,
            http: &http,
            store: Some(services.store.clone()),
            clock: Arc::clone(&services.clock),
            routes: services.routing.routes(&[]),
            outbox: Arc::clone(&services.outbox),
        });
        let (processes, begun) = Processes::new();
        let hands = Hands { writer, runner, keeper, processes: begun };
        Ok((Self { settings, services, couriers, gateway, prompts, processes, heartbeat, http }, hands))
    }

    /// # Errors
    /// What `config::check` would have said.
    pub fn build(&self, spec: &Arc<MonitorSpec>) -> anyhow::Result<Arc<Monitor>> {
        let prompts: Arc<dyn metrics::Prompts> = Arc::new(self.prompts.clone());
        let runs: Arc<dyn Runs> = Arc::new(self.services.store.clone());
        let env = BuildEnv {
            connections: &self.settings.connections,
            http: &self.http,
            models: &*self.gateway,
            prompts: &prompts,
            processes: &self.processes,
            runs: &runs,
            base_dir: &self.settings.base_dir,
        };
        Ok(Arc::new(Monitor::build(Arc::clone(spec), &env)?))
    }

    /// Makes a monitor's sinks known, and to whom its judges' calls are told; returns the queues that are new and want a courier.
    #[must_use]
    pub fn register(&self, monitor: &Monitor) -> Vec<String> {
        let traced: BTreeSet<&str> = monitor.spec.publish.iter().filter_map(|sink| sink.trace_calls()).collect();
        let projects = traced.into_iter().filter_map(|name| self.settings.connections.langfuse.get(name));
        self.gateway.trace_calls(&monitor.spec.name, projects.map(|project| Langfuse::new(project, self.http.clone())).collect());
        monitor.sinks.iter().filter(|(queue, sink)| self.couriers.set_sink(queue, Arc::clone(sink))).map(|(queue, _)| queue.clone()).collect()
    }
}

/// Which monitors judge with which prompts.
pub fn uses<'a>(specs: impl IntoIterator<Item = &'a Arc<MonitorSpec>>) -> BTreeSet<Use> {
    let of = |spec: &'a Arc<MonitorSpec>| {
        let used = move |metric: &MetricSpec| Some(Use { monitor: spec.name.clone(), metric: metric.name.clone(), prompt: metric.config.prompt()? });
        spec.metrics.iter().filter_map(used)
    };
    specs.into_iter().flat_map(of).collect()
}

/// Prompts for a probe: nothing is kept, nobody is told.
#[must_use]
pub fn prompts(settings: &Settings, http: &Http) -> Arc<dyn metrics::Prompts> {
    let (outbox, clock) = (Arc::new(watch::Sender::new(())), Arc::new(SystemClock));
    Arc::new(Prompts::new(PromptsCx { connections: &settings.connections.langfuse, http, store: None, clock, routes: Vec::new(), outbox }).0)
}

/// For a probe, which judges nothing.
#[must_use]
pub fn no_processes() -> Processes {
    Processes::none()
}

/// For a probe, which delivers nothing.
#[must_use]
pub fn no_runs() -> Arc<dyn Runs> {
    Arc::new(NoRuns)
}

/// The one HTTP client.
///
/// # Errors
/// When TLS cannot be set up.
pub fn http(settings: &Settings) -> anyhow::Result<Http> {
    let client = reqwest::Client::builder()
        .user_agent(concat!("assayd/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(Duration::from_secs(5))
        .pool_idle_timeout(Duration::from_secs(60))
        // A key in a header of its own would follow a redirect to another host.
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .context("setting up the HTTP client")?;
    Ok(Http::new(client, settings.retry))
}

/// Without a store it only probes. The caller runs the runner.
///
/// # Errors
/// When a provider's settings cannot be used, or a name leads nowhere.
pub fn gateway(settings: &Settings, http: &Http, store: Option<Store>, clock: Arc<dyn Clock>) -> anyhow::Result<(Gateway, Runner)> {
    let mut providers = BTreeMap::new();
    for (name, spec) in &settings.providers {
        let provider = spec.config.build(http).with_context(|| format!("provider `{name}`"))?;
        providers.insert(name.clone(), ProviderSpec { provider, origin: spec.origin.clone(), limits: spec.limits });
    }
    let mut profiles = BTreeMap::new();
    for (name, spec) in &settings.profiles {
        profiles.insert(name.clone(), profile(settings, http, spec).with_context(|| format!("profile `{name}`"))?);
    }
    let shelf = match &settings.cache.redis {
        Some(url) => Some(Shelf::redis(url.expose_secret()).map_err(|error| anyhow!("cache: {error}"))?),
        None => store.clone().map(Shelf::Store),
    };
    Ok(Gateway::new(GatewaySpec {
        providers,
        profiles,
        default: settings.environment.profile.clone(),
        prices: settings.prices.clone(),
        judge_calls: settings.concurrency.judge_calls,
        retry: settings.retry,
        budgets: settings.budget.clone(),
        cache: gateway::CacheSpec { shelf, memory: settings.cache.memory_mb << 20 },
        store,
        clock,
    })?)
}

fn profile(settings: &Settings, http: &Http, spec: &crate::config::ProfileSpec) -> anyhow::Result<ProfileSpec> {
    let hooks = match spec.hooks.as_ref().or(settings.environment.hooks.as_ref()) {
        Some(name) => hooks(settings, http, settings.hooks.get(name).with_context(|| format!("`hooks` has no `{name}`"))?)?,
        None => Hooks::default(),
    };
    Ok(ProfileSpec {
        provider: spec.provider.clone(),
        model: spec.model.clone(),
        temperature: spec.temperature,
        max_tokens: spec.max_tokens,
        system: spec.system.clone(),
        timeout: spec.timeout.map(|timeout| timeout.0),
        limits: spec.limits,
        fallback: spec.fallback.clone(),
        fallback_on: spec.fallback_on.clone(),
        keep: spec.cache.map(|keep| Keep { ttl: keep.ttl.0, random: keep.random }),
        hooks,
        redact: spec.redact.clone(),
    })
}

fn hooks(settings: &Settings, http: &Http, spec: &HooksSpec) -> anyhow::Result<Hooks> {
    let build = |hooks: &[HookSpec]| hooks.iter().map(|hook| self::hook(settings, http, hook)).collect::<anyhow::Result<Arc<[Hook]>>>();
    Ok(Hooks { before: build(&spec.before)?, after: build(&spec.after)? })
}

fn hook(settings: &Settings, http: &Http, spec: &HookSpec) -> anyhow::Result<Hook> {
    Ok(match spec {
        HookSpec::LogRequest => Hook::LogRequest,
        HookSpec::LogUsage => Hook::LogUsage,
        HookSpec::Guard => Hook::Guard,
        HookSpec::Record => Hook::Record,
        HookSpec::Langfuse(name) => {
            let connection = settings.connections.langfuse.get(name).with_context(|| format!("hook `langfuse`: there is no connection `{name}`"))?;
            Hook::Langfuse(Langfuse::new(connection, http.clone()))
        }
        HookSpec::Webhook(url) => Hook::Webhook { http: http.clone(), url: url.clone() },
    })
}
