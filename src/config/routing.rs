//! To whom alerts go (`notify`, `routes`), what is told together (`group_by` and kin), and when nobody is told
//! (`maintenance`).

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;

use crate::{
    alerting::{maintenance::Maintenance, silence::Matcher},
    connections::{self, Connections},
    model::{Group, Route},
    util::{
        duration::Human,
        yaml::{Fault, Section},
    },
};

/// An entry of `notify:`, one of the keys, but for `connection`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NotifyTarget {
    /// Channel, `#llm-alerts` or an id.
    pub slack: Option<String>,
    /// Address of a mailbox; several are separated by commas.
    pub email: Option<String>,
    /// Connection of `slack` or `email`. Default: `default`.
    pub connection: Option<String>,
    /// Webhook connection.
    pub webhook: Option<String>,
    /// Alertmanager connection.
    pub alertmanager: Option<String>,
    /// PagerDuty connection.
    pub pagerduty: Option<String>,
}

impl NotifyTarget {
    /// Where it sends.
    ///
    /// # Errors
    /// What is wrong with it, in a sentence.
    pub fn route(&self) -> Result<Route, String> {
        let named =
            [("slack", &self.slack), ("email", &self.email), ("webhook", &self.webhook), ("alertmanager", &self.alertmanager), ("pagerduty", &self.pagerduty)];
        let mut named = named.into_iter().filter_map(|(sink, value)| Some((sink, value.as_deref()?)));
        let (Some((sink, value)), None) = (named.next(), named.next()) else {
            return Err("one of `slack`, `email`, `webhook`, `alertmanager` and `pagerduty`".to_owned());
        };
        if matches!(sink, "slack" | "email") {
            let connection = self.connection.as_deref().unwrap_or(connections::DEFAULT);
            return Ok(Route { sink: sink.to_owned(), connection: connection.to_owned(), target: value.to_owned() });
        }
        if self.connection.is_some() {
            return Err(format!("`connection` goes with `slack` and `email`; `{sink}` names its connection itself"));
        }
        Ok(Route { sink: sink.to_owned(), connection: value.to_owned(), target: value.to_owned() })
    }

    /// Whether it can be sent by these connections.
    ///
    /// # Errors
    /// What is wrong with it, in a sentence.
    pub fn check(&self, connections: &Connections) -> Result<(), String> {
        let Route { sink, connection, target } = self.route()?;
        match sink.as_str() {
            "webhook" => connections::find("webhook", &connections.webhook, &connection).map(drop),
            "alertmanager" => connections::find("alertmanager", &connections.alertmanager, &connection).map(drop),
            "pagerduty" => connections::find("pagerduty", &connections.pagerduty, &connection).map(drop),
            "email" => connections::find("email", &connections.email, &connection).and_then(|_| connections::mailboxes(&target)).map(drop),
            _ => connections::find("slack", &connections.slack, &connection).map(drop),
        }
    }
}

/// What is told together, and how often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grouping {
    /// Labels whose values alerts have to share to be told together; `...` for all of them: each alert by itself.
    pub by: Vec<String>,
    /// How long the first alert of a group waits for others.
    pub wait: Human,
    /// At least so long between two messages of a group that is not over.
    pub interval: Human,
}

impl Default for Grouping {
    /// By monitor: a run evaluates all alerts of its monitor at once, so there is nothing to wait for.
    fn default() -> Self {
        Self { by: vec!["monitor".to_owned()], wait: Human::secs(0), interval: Human::secs(0) }
    }
}

/// Any label, in `group_by`.
const EACH: &str = "...";

impl Grouping {
    fn group(&self, route: Route, labels: &BTreeMap<String, String>) -> Group {
        let each = self.by.iter().any(|label| label == EACH);
        let shared = labels.iter().filter(|(name, _)| each || self.by.contains(name));
        let shared = shared.map(|(name, value)| (name.clone(), value.clone())).collect();
        Group::new(route, shared, self.wait.millis().saturating_mul(1000), self.interval.millis().saturating_mul(1000))
    }
}

/// The keys of a grouping; what is left out is as it is one level above.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct GroupKeys {
    pub by: Option<Vec<String>>,
    pub wait: Option<Human>,
    pub interval: Option<Human>,
}

impl GroupKeys {
    fn over(self, above: &Grouping) -> Grouping {
        Grouping { by: self.by.unwrap_or_else(|| above.by.clone()), wait: self.wait.unwrap_or(above.wait), interval: self.interval.unwrap_or(above.interval) }
    }
}

/// An entry of `routes:`. The first that fits an alert says to whom it goes.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RouteFile {
    /// Such as `team=support` and `severity=~"critical|warning"`: all have to fit.
    #[schemars(with = "Vec<String>")]
    matchers: Vec<Matcher>,
    notify: Vec<NotifyTarget>,
    /// Default: as for all.
    group_by: Option<Vec<String>>,
    group_wait: Option<Human>,
    group_interval: Option<Human>,
    /// Routes below this one are looked at too. Default false.
    #[serde(default)]
    r#continue: bool,
}

#[derive(Debug, Clone)]
struct RouteSpec {
    matchers: Vec<Matcher>,
    notify: Vec<NotifyTarget>,
    grouping: Grouping,
    goes_on: bool,
}

/// To whom which alert goes.
#[derive(Debug, Clone, Default)]
pub struct Routing {
    /// Where alerts go that have no `notify` of their own and fit no route. Empty: to the log.
    pub notify: Vec<NotifyTarget>,
    /// When nobody is told.
    pub maintenance: Vec<Maintenance>,
    grouping: Grouping,
    routes: Vec<RouteSpec>,
}

impl Routing {
    pub(super) fn read(
        notify: Vec<NotifyTarget>,
        keys: GroupKeys,
        written: Option<Vec<Section<RouteFile>>>,
        connections: &Connections,
        faults: &mut Vec<Fault>,
    ) -> Self {
        let grouping = keys.over(&Grouping::default());
        let mut routes = Vec::new();
        for section in written.unwrap_or_default() {
            let Some(file) = section.read(faults) else { continue };
            let at = |key: &str| section.node.get(key).map_or(&section.node.at, |node| &node.at);
            if file.notify.is_empty() {
                faults.push(Fault::new(at("notify"), "a route needs somebody to `notify`"));
            }
            for target in &file.notify {
                if let Err(message) = target.check(connections) {
                    faults.push(Fault::new(at("notify"), message));
                }
            }
            let keys = GroupKeys { by: file.group_by, wait: file.group_wait, interval: file.group_interval };
            routes.push(RouteSpec { matchers: file.matchers, notify: file.notify, grouping: keys.over(&grouping), goes_on: file.r#continue });
        }
        Self { notify, maintenance: Vec::new(), grouping, routes }
    }

    /// Who is told of an alert with these labels, each once: its own targets, else those of the routes that fit, else the default, else the
    /// log.
    #[must_use]
    pub fn groups(&self, own: &[NotifyTarget], labels: &BTreeMap<String, String>) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        let mut add = |targets: &[NotifyTarget], grouping: &Grouping| {
            for target in targets {
                // What has no route was refused when it was loaded.
                let Ok(route) = target.route() else { continue };
                if groups.iter().all(|group| group.route != route) {
                    groups.push(grouping.group(route, labels));
                }
            }
        };
        if own.is_empty() {
            for route in self.routes.iter().filter(|route| route.matchers.iter().all(|matcher| matcher.fits(labels))) {
                add(&route.notify, &route.grouping);
                if !route.goes_on {
                    break;
                }
            }
        } else {
            add(own, &self.grouping);
        }
        if groups.is_empty() {
            groups = self.routes(&[]).into_iter().map(|route| self.grouping.group(route, labels)).collect();
        }
        groups
    }

    /// Where goes what is no alert of a monitor: to these targets, else the default, else the log.
    #[must_use]
    pub fn routes(&self, own: &[NotifyTarget]) -> Vec<Route> {
        let targets = if own.is_empty() { &self.notify } else { own };
        if targets.is_empty() {
            return vec![Route { sink: "log".to_owned(), connection: String::new(), target: String::new() }];
        }
        targets.iter().filter_map(|target| target.route().ok()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slack(channel: &str) -> NotifyTarget {
        NotifyTarget { slack: Some(channel.to_owned()), ..NotifyTarget::default() }
    }

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn route(matcher: &str, channel: &str, goes_on: bool) -> RouteSpec {
        RouteSpec { matchers: vec![matcher.parse().unwrap()], notify: vec![slack(channel)], grouping: Grouping::default(), goes_on }
    }

    fn channels(routing: &Routing, own: &[NotifyTarget], of: &[(&str, &str)]) -> Vec<String> {
        routing.groups(own, &labels(of)).into_iter().map(|group| group.route.target).collect()
    }

    #[test]
    fn the_first_route_that_fits_says_who_is_told() {
        let routes = vec![route("severity=critical", "#on-call", true), route("team=support", "#support", false), route("team=~.+", "#teams", false)];
        let routing = Routing { notify: vec![slack("#all")], routes, ..Routing::default() };
        assert_eq!(channels(&routing, &[], &[("team", "support")]), ["#support"]);
        assert_eq!(channels(&routing, &[], &[("team", "support"), ("severity", "critical")]), ["#on-call", "#support"]);
        assert_eq!(channels(&routing, &[], &[("team", "search")]), ["#teams"]);
        assert_eq!(channels(&routing, &[], &[]), ["#all"], "whatever fits no route");
        assert_eq!(channels(&routing, &[slack("#own")], &[("team", "support")]), ["#own"], "an alert's own `notify` comes first");
        assert_eq!(Routing::default().groups(&[], &labels(&[]))[0].route.sink, "log");
    }

    #[test]
    fn alerts_that_share_the_named_labels_are_told_together() {
        let key = |by: &[&str], of: &[(&str, &str)]| {
            let grouping = Grouping { by: by.iter().map(|label| (*label).to_owned()).collect(), ..Grouping::default() };
            Routing { notify: vec![slack("#all")], grouping, ..Routing::default() }.groups(&[], &labels(of))[0].key.clone()
        };
        let (a, b) = ([("monitor", "m"), ("alertname", "a"), ("team", "t")], [("monitor", "m"), ("alertname", "b"), ("team", "t")]);
        assert_eq!(key(&["monitor"], &a), key(&["monitor"], &b));
        assert_eq!(key(&["team"], &a), key(&["team"], &b));
        assert_eq!(key(&[], &a), key(&[], &[("monitor", "n")]), "nothing named: all together");
        assert_ne!(key(&["..."], &a), key(&["..."], &b));
        assert_ne!(key(&["team"], &a), key(&["team"], &[("monitor", "m")]), "one without the label is another group");
    }
}
