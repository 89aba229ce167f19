//! Settings -> parts that work together. The only place that builds plug-ins for real.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, anyhow};
use tokio::sync::watch;

use crate::{
    config::{MonitorSpec, Settings},
    gateway::{Gateway, GatewaySpec, ProfileSpec, ProviderSpec},
    pipeline::{BuildEnv, Couriers, Monitor, Services},
    schedule::clock::Clock,
    sinks::slack::SlackNotifier,
    store::{Store, Writer},
    util::http::Http,
};

/// Everything that runs need, wired.
pub struct World {
    pub settings: Arc<Settings>,
    pub services: Services,
    pub couriers: Arc<Couriers>,
    pub gateway: Arc<Gateway>,
    http: Http,
}

impl World {
    /// Opens the store and builds what all monitors share. The caller runs the writer.
    ///
    /// # Errors
    /// When the store cannot be opened or a connection's settings cannot be used.
    pub async fn open(settings: Arc<Settings>, clock: Arc<dyn Clock>) -> anyhow::Result<(Self, Writer)> {
        let (store, writer) = Store::open(&settings.state).await?;
        let http = http(&settings)?;
        let gateway = Arc::new(gateway(&settings, &http, Some(store.clone()), Arc::clone(&clock))?);
        let couriers = Arc::new(Couriers::default());
        for (name, connection) in &settings.connections.slack {
            if connection.token.is_some() || connection.webhook_url.is_some() {
                let notifier = SlackNotifier::new(connection).map_err(|error| anyhow!("slack connection `{name}`: {error}"))?;
                couriers.set_notifier(name, Arc::new(notifier));
            }
        }
        let notify = settings.notify.clone().into();
        let services = Services { store, clock, outbox: Arc::new(watch::Sender::new(())), notify };
        Ok((Self { settings, services, couriers, gateway, http }, writer))
    }

    /// # Errors
    /// What `config::check` would have said.
    pub fn build(&self, spec: &Arc<MonitorSpec>) -> anyhow::Result<Arc<Monitor>> {
        let env = BuildEnv { connections: &self.settings.connections, http: &self.http, models: &*self.gateway, base_dir: &self.settings.base_dir };
        Ok(Arc::new(Monitor::build(Arc::clone(spec), &env)?))
    }

    /// Makes a monitor's sinks known; returns the queues that are new and want a courier.
    #[must_use]
    pub fn register(&self, monitor: &Monitor) -> Vec<String> {
        monitor.sinks.iter().filter(|(queue, sink)| self.couriers.set_sink(queue, Arc::clone(sink))).map(|(queue, _)| queue.clone()).collect()
    }
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

/// Without a store it only probes.
///
/// # Errors
/// When a provider's settings cannot be used.
pub fn gateway(settings: &Settings, http: &Http, store: Option<Store>, clock: Arc<dyn Clock>) -> anyhow::Result<Gateway> {
    let mut providers = std::collections::BTreeMap::new();
    for (name, spec) in &settings.providers {
        let provider = spec.config.build(http).with_context(|| format!("provider `{name}`"))?;
        providers.insert(name.clone(), ProviderSpec { provider, limits: spec.limits });
    }
    let profile = |spec: &crate::config::ProfileSpec| ProfileSpec {
        provider: spec.provider.clone(),
        model: spec.model.clone(),
        temperature: spec.temperature,
        max_tokens: spec.max_tokens,
        system: spec.system.clone(),
        timeout: spec.timeout.map(|timeout| timeout.0),
        limits: spec.limits,
        fallback: spec.fallback.clone(),
        fallback_on: spec.fallback_on.clone(),
    };
    Ok(Gateway::new(GatewaySpec {
        providers,
        profiles: settings.profiles.iter().map(|(name, spec)| (name.clone(), profile(spec))).collect(),
        prices: settings.prices.clone(),
        judge_calls: settings.concurrency.judge_calls,
        retry: settings.retry,
        budgets: settings.budget.clone(),
        store,
        clock,
    })?)
}
