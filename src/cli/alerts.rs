//! `assayd alerts`: the way a message takes to people, tried.

use jiff::Timestamp;

use super::{Failure, Overrides, block_on, print, settings};
use crate::{
    config::{NotifyTarget, Settings},
    daemon::wire,
    model::{AlertEvent, AlertEventKind, Group, News, Route, Severity, WorstItem},
    pipeline::Couriers,
    sinks::{NotifyError, SoFar, slack::plain},
    util::text::one_line,
};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Action {
    /// Send a sample alert, marked TEST, and its end
    Test {
        /// `slack:#channel`, `email:ops@example.com`, `webhook:NAME`, `alertmanager:NAME`, `pagerduty:NAME`; without it: all of `notify` in assayd.yaml
        receiver: Option<String>,
        /// Connection of `slack` or `email` [default: default]
        #[arg(long, requires = "receiver")]
        connection: Option<String>,
    },
}

pub(super) fn alerts(overrides: &Overrides, action: Action) -> Result<(), Failure> {
    let Action::Test { receiver, connection } = action;
    let settings = settings(overrides)?;
    let routes = match receiver {
        Some(receiver) => vec![route(&settings, &receiver, connection)?],
        None => settings.routing.routes(&[]),
    };
    block_on(async {
        let couriers = Couriers::default();
        wire::notifiers(&settings, &wire::http(&settings)?, &couriers)?;
        let mut sound = true;
        for route in routes {
            sound &= told(&couriers, route).await?;
        }
        if sound { Ok(()) } else { Err(Failure::Problems) }
    })
}

fn route(settings: &Settings, receiver: &str, connection: Option<String>) -> Result<Route, Failure> {
    let wrong = || Failure::Usage(format!("`{}` is no receiver; write it like `slack:#llm-alerts` or `webhook:NAME`", one_line(receiver, 80)));
    let (sink, target) = receiver.split_once(':').filter(|(_, target)| !target.is_empty()).ok_or_else(wrong)?;
    let target = Some(target.to_owned());
    let empty = NotifyTarget { connection, ..NotifyTarget::default() };
    let target = match sink {
        "slack" => NotifyTarget { slack: target, ..empty },
        "email" => NotifyTarget { email: target, ..empty },
        "webhook" => NotifyTarget { webhook: target, ..empty },
        "alertmanager" => NotifyTarget { alertmanager: target, ..empty },
        "pagerduty" => NotifyTarget { pagerduty: target, ..empty },
        _ => return Err(wrong()),
    };
    target.check(&settings.connections).and_then(|()| target.route()).map_err(Failure::Usage)
}

/// A firing and its end, so that a test leaves nothing open.
async fn told(couriers: &Couriers, route: Route) -> Result<bool, Failure> {
    let name = if route.target.is_empty() { route.sink.clone() } else { format!("{}:{}", route.sink, route.target) };
    let Some(notifier) = couriers.notifier(&route.sink, &route.connection) else {
        print(&format!("{name}: {}\n", plain(&sample(AlertEventKind::Firing))))?;
        return Ok(true);
    };
    let group = Group::alone(route, &sample(AlertEventKind::Firing).fingerprint);
    let mut so_far = SoFar::default();
    for (n, kind) in [AlertEventKind::Firing, AlertEventKind::Resolved].into_iter().enumerate() {
        let event = sample(kind);
        let id = format!("{}-{}-{n}", group.key, uuid::Uuid::now_v7());
        let news = News {
            id,
            key: group.key.clone(),
            labels: group.labels.clone(),
            members: vec![event.clone()],
            changes: vec![event],
            first: n == 0,
            louder: n == 0,
        };
        so_far = SoFar { thread: so_far.thread, ..SoFar::default() };
        match notifier.notify(&news, &group.route.target, &mut so_far).await {
            Ok(()) => {}
            Err(NotifyError::Dead(message) | NotifyError::Retry { message, .. }) => {
                print(&format!("{name}: not delivered: {message}\n"))?;
                return Ok(false);
            }
        }
    }
    print(&format!("{name}: a sample alert and its end were taken\n"))?;
    Ok(true)
}

fn sample(kind: AlertEventKind) -> AlertEvent {
    let now = Timestamp::now();
    AlertEvent {
        fingerprint: format!("test/TEST/{}", std::process::id()),
        kind,
        monitor: "sample-monitor".to_owned(),
        alert: "TEST".to_owned(),
        severity: Severity::Info,
        condition: "mean < 0.8".to_owned(),
        summary: "TEST: nothing is wrong. This is how an alert of assayd reaches you".to_owned(),
        metric: Some("faithfulness".to_owned()),
        value: Some(0.71),
        interval: Some((0.63, 0.78)),
        threshold: Some(0.8),
        n: Some(130),
        window: Some("24h".to_owned()),
        since: now,
        at: now,
        run_id: "test".to_owned(),
        labels: std::collections::BTreeMap::new(),
        worst: vec![WorstItem { item_id: "sample-item".to_owned(), value: 0.1, reason: "a sample reason".to_owned(), url: None }],
        history: vec![0.84, 0.86, 0.83, 0.85, 0.79, 0.74, 0.71],
        lines: Vec::new(),
    }
}
