//! Tree -> monitor, with every fault of it. Plug-ins are built once to see whether they can be, and dropped. Reads no file but what the
//! monitor names.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, LazyLock},
};

use super::{
    ExtractSpec, MetricSpec, MonitorSpec, SamplingSpec, Settings, SourceSpec, Strategy,
    monitor::{File, MetricCommon, ScopeName, SourceCommon},
    steps,
    switches::{self, Whose},
    warn,
};
use crate::{
    connections::LangfuseConnection,
    metrics::{MetricBuildCx, MetricKind, Prompts, exec::Processes},
    model::{PromptRef, PromptVersion},
    providers::{CallCx, CallError, Model, Models, Question, Reply},
    schedule::plan::{Plan, ScheduleSpec},
    sinks::{NoRuns, Runs, SinkConfig, SinkCx, SinkKind},
    sources::{Scope, SourceConfig, SourceCx, SourceKind},
    util::{
        backoff::Policy,
        duration::Human,
        http::Http,
        plugin::{self, BuildError},
        template::{Expr, Template},
        yaml::{self, Fault, Node, Section, Span, Value},
    },
};

pub(super) const SOURCE_COMMON: [&str; 10] = ["name", "settle", "lookback", "overlap", "limit", "filter", "scope", "where", "session_window", "rejudge"];
pub(super) const METRIC_COMMON: [&str; 4] = ["name", "when", "threshold", "higher_is_better"];

/// `None` after at least one fault was pushed.
pub(super) fn monitor(tree: &Node, path: &Path, settings: &Settings, faults: &mut Vec<Fault>) -> Option<MonitorSpec> {
    let before = faults.len();
    let file: File = yaml::read(tree, faults)?;
    for key in ["schedule", "source", "metrics"] {
        if tree.get(key).is_none() {
            faults.push(Fault::new(&tree.at, format!("`{key}` is missing")));
        }
    }
    let name = name(file.name.as_ref(), tree, path, faults);
    let schedule = file.schedule.as_ref().and_then(|section| schedule(section, &name, faults));
    let source = file.source.as_ref().and_then(|node| source(node, &name, settings, faults));
    let extract =
        file.extract.as_ref().map_or_else(|| Some(ExtractSpec::default()), |section| section.read(faults).inspect(|spec| extract(spec, &section.node, faults)));
    let sampling = file
        .sampling
        .as_ref()
        .map_or_else(|| Some(SamplingSpec::default()), |section| section.read(faults).inspect(|spec| sampling(spec, &section.node, faults)));
    let evaluation = file.evaluation.as_ref().map_or_else(|| Some(super::EvaluationSpec::default()), |section| section.read(faults));
    let of_metrics = file.metrics.unwrap_or_default();
    let metrics = metrics(&of_metrics, tree, settings, faults);
    if let Some(source) = tree.get("source") {
        steps::check(source, &metrics, &of_metrics, faults);
    }
    let published = file.publish.unwrap_or_default();
    let publish = publish(&published, &metrics, settings, faults);
    let interval = schedule.as_ref().and_then(|schedule| super::alerts::interval(schedule, &name));
    let alerts = super::alerts::check(&file.alerts.unwrap_or_default(), &metrics, interval, settings, faults);
    let anchors = file.anchors.as_ref().and_then(|section| super::anchors::check(section, &metrics, interval, path, faults));
    let watch = switches::read(file.watch.as_ref(), Whose::Monitor, faults).over(&settings.watch);
    if faults.len() > before {
        return None;
    }
    let source = source?;
    // Without faults each entry became a sink.
    let warnings = publish.iter().zip(&published).filter_map(|(sink, node)| warn::scores_without_traces(sink.as_ref(), node, &source, settings)).collect();
    Some(MonitorSpec {
        name,
        description: file.description.unwrap_or_default(),
        enabled: file.enabled.unwrap_or(true),
        environment: file.environment,
        labels: file.labels.unwrap_or_default(),
        maintenance: super::maintenance::read(file.maintenance, faults),
        schedule: schedule?,
        source,
        extract: extract?,
        sampling: sampling?,
        metrics,
        evaluation: evaluation?,
        publish,
        alerts,
        watch,
        anchors,
        file: path.to_owned(),
        fingerprint: fingerprint(tree),
        parts: parts(tree),
        warnings,
    })
}

fn name(written: Option<&Section<String>>, tree: &Node, path: &Path, faults: &mut Vec<Fault>) -> String {
    let (name, at) = match written {
        Some(section) => (section.read(faults).unwrap_or_default(), &section.node.at),
        None => (path.file_stem().unwrap_or_default().to_string_lossy().into_owned(), &tree.at),
    };
    let sound = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if !(name.starts_with(sound) && name.len() <= 64 && name.chars().all(|c| sound(c) || matches!(c, '.' | '_' | '-'))) {
        faults.push(Fault::new(
            at,
            format!("`{}` is no name: up to 64 of a-z, 0-9, `.`, `_` and `-`, beginning with a letter or digit", crate::util::text::one_line(&name, 80)),
        ));
    }
    name
}

fn schedule(section: &Section<ScheduleSpec>, name: &str, faults: &mut Vec<Fault>) -> Option<ScheduleSpec> {
    let spec = section.read(faults)?;
    plan(&spec, name, &section.node, faults).then_some(spec)
}

fn plan(spec: &ScheduleSpec, name: &str, node: &Node, faults: &mut Vec<Fault>) -> bool {
    match Plan::new(spec, name) {
        Ok(_) => true,
        Err(fault) => {
            faults.push(Fault::new(place(node, fault.key), fault.message));
            false
        }
    }
}

/// Where a key's value stands, or the block where the key is missing.
pub(super) fn place<'a>(node: &'a Node, key: &str) -> &'a Span {
    node.get(key).map_or(&node.at, |value| &value.at)
}

fn unbuildable(node: &Node, error: &BuildError) -> Fault {
    let block = error.within.iter().try_fold(node, |block, key| block.get(key)).unwrap_or(node);
    Fault::new(error.key.map_or(&block.at, |key| place(block, key)), error.message.clone())
}

/// The keys of `node` that are among `keys`.
pub(super) fn only(node: &Node, keys: &[&str]) -> Node {
    let map = node.as_map().map(|map| map.iter().filter(|(key, ..)| keys.contains(&key.as_str())).cloned().collect()).unwrap_or_default();
    Node::new(node.at.clone(), Value::Map(map))
}

/// A client for checking: builds requests, sends none. One for all checks: making one reads the system's certificates.
static CLIENT: LazyLock<Http> = LazyLock::new(|| Http::new(reqwest::Client::new(), Policy::default()));

fn source(node: &Node, monitor: &str, settings: &Settings, faults: &mut Vec<Fault>) -> Option<SourceSpec> {
    let common: Option<SourceCommon> = yaml::read(&only(node, &SOURCE_COMMON), faults);
    let (kind, config) = plugin::read_block(node, &SOURCE_COMMON, inventory::iter::<SourceKind>().collect(), "source", faults)?;
    let common = common?;
    expression(common.filter.as_deref(), node, "filter", faults);
    if common.limit == 0 {
        faults.push(Fault::new(place(node, "limit"), "at least 1"));
    }
    let scope = scope(&common, kind, config.as_ref(), node, faults);
    let cx = SourceCx { connections: &settings.connections, http: &CLIENT, base_dir: &settings.base_dir, wants_observations: false };
    if let Err(error) = config.build(&cx) {
        faults.push(unbuildable(node, &error));
    }
    Some(SourceSpec {
        kind: kind.to_owned(),
        name: common.name.unwrap_or_else(|| monitor.to_owned()),
        settle: common.settle,
        lookback: common.lookback,
        overlap: common.overlap,
        limit: common.limit,
        filter: common.filter,
        scope: scope?,
        rejudge: common.rejudge,
        langfuse: warn::langfuse(node),
        config: config.into(),
    })
}

fn scope(common: &SourceCommon, kind: &str, config: &dyn SourceConfig, node: &Node, faults: &mut Vec<Fault>) -> Option<Scope> {
    let mut wrong = |key: &str, message: &str| faults.push(Fault::new(place(node, key), message));
    if common.r#where.is_some() && common.scope != ScopeName::Observation {
        wrong("where", "`where` needs `scope: observation` beside it; what all items are filtered by is `filter`");
    }
    if common.session_window.is_some() && common.scope != ScopeName::Session {
        wrong("session_window", "`session_window` needs `scope: session` beside it");
    }
    let gives = match common.scope {
        ScopeName::Trace => true,
        ScopeName::Observation => config.gives_observations(),
        ScopeName::Session => config.gives_sessions(),
    };
    if !gives {
        let what = if common.scope == ScopeName::Session { "sessions" } else { "observations" };
        wrong("scope", &format!("a source of type `{kind}` gives no {what}, so there would be no item"));
    }
    Some(match common.scope {
        ScopeName::Trace => Scope::Trace,
        ScopeName::Observation => {
            let Some(matching) = common.r#where.clone() else {
                wrong("scope", "`scope: observation` needs `where`, the observations that are items, such as `where: observation.name == \"answer\"`");
                return None;
            };
            expression(Some(&matching), node, "where", faults);
            Scope::Observation { matching }
        }
        ScopeName::Session => Scope::Session { reach: common.session_window.unwrap_or(Human::hours(24)) },
    })
}

fn expression(text: Option<&str>, node: &Node, key: &str, faults: &mut Vec<Fault>) {
    if let Some(Err(error)) = text.map(Expr::new) {
        faults.push(Fault::new(place(node, key), format!("`{key}` is no expression: {error}")));
    }
}

fn extract(spec: &ExtractSpec, node: &Node, faults: &mut Vec<Fault>) {
    let own = [("input", &spec.input), ("output", &spec.output), ("context", &spec.context), ("expected", &spec.expected)];
    let own = own.into_iter().map(|(key, text)| (key, text.as_str())).chain(spec.details()).map(|(key, text)| (key.to_owned(), text));
    let of_metadata = spec.metadata.iter().map(|(key, text)| (key.clone(), text.as_str()));
    for (key, text) in own.chain(of_metadata) {
        if let Err(error) = Template::new(text) {
            let at = node.get(&key).or_else(|| node.get("metadata")?.get(&key)).map_or(&node.at, |value| &value.at);
            faults.push(Fault::new(at, format!("`{key}` is no template: {error}")));
        }
    }
    for (step, sides) in &spec.patterns {
        for (side, pattern) in sides {
            let at = node.get("patterns").and_then(|patterns| patterns.get(step)?.get(side)).map_or(&node.at, |value| &value.at);
            match regex::Regex::new(pattern) {
                Err(error) => faults.push(Fault::new(at, format!("no regular expression: {}", crate::util::text::one_line(&error.to_string(), 300)))),
                Ok(regex) if regex.capture_names().flatten().next().is_none() => {
                    faults.push(Fault::new(at, "the pattern has no named group `(?P<name>...)`, so it would yield no variable"));
                }
                Ok(_) => {}
            }
            if side != "input" && side != "output" {
                faults.push(Fault::new(at, format!("`{side}` is no text of a step, expected `input` or `output`")));
            }
        }
    }
}

fn sampling(spec: &SamplingSpec, node: &Node, faults: &mut Vec<Fault>) {
    let mut wrong = |key: &str, message: &str| faults.push(Fault::new(place(node, key), message));
    let by_number = matches!(spec.strategy, Strategy::Random | Strategy::MostRecent | Strategy::Oldest);
    match spec.n {
        None if by_number => wrong("strategy", "this strategy needs `n`, the number of items a run draws"),
        Some(0) => wrong("n", "at least 1"),
        Some(_) if !by_number => wrong("n", "`n` goes with random, most_recent and oldest"),
        _ => {}
    }
    match (spec.strategy, spec.rate) {
        (Strategy::Rate, None) => wrong("strategy", "this strategy needs `rate`, a share in (0, 1]"),
        (Strategy::Rate, Some(rate)) if !(rate > 0.0 && rate <= 1.0) => wrong("rate", "a share in (0, 1]"),
        (strategy, Some(_)) if strategy != Strategy::Rate => wrong("rate", "`rate` needs `strategy: rate` beside it"),
        _ => {}
    }
    expression(spec.always.as_deref(), node, "always", faults);
}

/// The profiles by name, for checking: asks nobody.
struct Names<'a>(&'a Settings);

struct Named(String);

#[async_trait::async_trait]
impl Model for Named {
    async fn ask(&self, _: Question, _: CallCx<'_>) -> Result<Reply, CallError> {
        Err(CallError::Failed { kind: "unsupported", message: "a model that is only being checked answers nothing".to_owned() })
    }

    fn identity(&self) -> String {
        self.0.clone()
    }
}

impl Models for Names<'_> {
    fn model(&self, profile: &str) -> Result<Arc<dyn Model>, String> {
        let named = self.0.environment.profile.as_deref().filter(|_| profile == "default" && !self.0.profiles.contains_key(profile)).unwrap_or(profile);
        match self.0.profiles.get(named) {
            Some(spec) => Ok(Arc::new(Named(format!("{}/{}", spec.provider, spec.model)))),
            None => {
                let known = self.0.profiles.keys().map(|known| format!("`{known}`")).collect::<Vec<_>>().join(", ");
                let known = if known.is_empty() { "assayd.yaml has no `profiles` yet".to_owned() } else { format!("assayd.yaml has {known}") };
                Err(format!("there is no profile `{profile}`: {known}"))
            }
        }
    }

    fn profiles(&self) -> Vec<String> {
        self.0.profiles.keys().cloned().collect()
    }
}

/// The connections by name, for checking: asks nobody.
#[derive(Debug)]
struct Kept(BTreeMap<String, LangfuseConnection>);

#[async_trait::async_trait]
impl Prompts for Kept {
    fn check(&self, prompt: &PromptRef) -> Result<(), String> {
        crate::connections::find("langfuse", &self.0, &prompt.connection).map(drop)
    }

    async fn current(&self, _: &PromptRef) -> Result<Arc<PromptVersion>, String> {
        Err("a prompt that is only being checked is not read".to_owned())
    }
}

fn metrics(nodes: &[Node], tree: &Node, settings: &Settings, faults: &mut Vec<Fault>) -> Vec<MetricSpec> {
    if let Some(Node { at, value: Value::Seq(items), .. }) = tree.get("metrics")
        && items.is_empty()
    {
        faults.push(Fault::new(at, "a monitor needs at least one metric"));
    }
    let models = Names(settings);
    let prompts: Arc<dyn Prompts> = Arc::new(Kept(settings.connections.langfuse.clone()));
    let processes = Processes::none();
    let cx = MetricBuildCx { models: &models, prompts: &prompts, http: &CLIENT, processes: &processes, base_dir: &settings.base_dir };
    let mut metrics: Vec<MetricSpec> = Vec::with_capacity(nodes.len());
    for node in nodes {
        let common: Option<MetricCommon> = yaml::read(&only(node, &METRIC_COMMON), faults);
        let block = plugin::read_block(node, &METRIC_COMMON, inventory::iter::<MetricKind>().collect(), "metric", faults);
        let (Some(common), Some((kind, config))) = (common, block) else { continue };
        if let Err(error) = config.check(&cx) {
            faults.push(unbuildable(node, &error));
        }
        if metrics.iter().any(|known| known.name == common.name) {
            faults.push(Fault::new(place(node, "name"), format!("the metric `{}` stands here a second time", common.name)));
        }
        if common.name.is_empty() {
            faults.push(Fault::new(place(node, "name"), "the metric needs a name"));
        }
        if common.name.contains('.') {
            faults.push(Fault::new(place(node, "name"), "a metric's name has no dot: `METRIC.PART` names one of several outcomes"));
        }
        if common.threshold.is_some_and(|threshold| !(0.0..=1.0).contains(&threshold)) {
            faults.push(Fault::new(place(node, "threshold"), "a threshold lies in [0, 1], as values do"));
        }
        expression(common.when.as_deref(), node, "when", faults);
        metrics.push(MetricSpec {
            name: common.name,
            kind: kind.to_owned(),
            when: common.when,
            threshold: common.threshold,
            higher_is_better: common.higher_is_better,
            config: config.into(),
        });
    }
    made_of_others(&metrics, nodes, faults);
    metrics
}

fn made_of_others(metrics: &[MetricSpec], nodes: &[Node], faults: &mut Vec<Fault>) {
    for (at, metric) in metrics.iter().enumerate() {
        let node = nodes.iter().find(|node| node.get("name").and_then(Node::as_str) == Some(&metric.name));
        let Some(place) = node.map(|node| place(node, "parts")) else { continue };
        for part in metric.config.parts() {
            let message = match metrics.iter().position(|known| known.config.gives().may_give(&known.name, part)) {
                Some(known) if known < at || known != at && metrics[known].config.parts().is_empty() => continue,
                Some(_) => format!("`{part}` is made of others, and so has to stand above"),
                None => {
                    let hint = crate::util::text::nearest(part, metrics.iter().map(|known| known.name.as_str()));
                    let hint = hint.map(|hint| format!(", did you mean `{hint}`?")).unwrap_or_default();
                    format!("there is no metric `{part}`{hint}")
                }
            };
            faults.push(Fault::new(place, message));
        }
    }
}

fn publish(nodes: &[Node], metrics: &[MetricSpec], settings: &Settings, faults: &mut Vec<Fault>) -> Vec<Arc<dyn SinkConfig>> {
    let runs: Arc<dyn Runs> = Arc::new(NoRuns);
    let cx = SinkCx { connections: &settings.connections, http: &CLIENT, base_dir: &settings.base_dir, runs: &runs };
    let mut sinks: Vec<Arc<dyn SinkConfig>> = Vec::with_capacity(nodes.len());
    for node in nodes {
        let Some((_, config)) = plugin::read_block(node, &[], inventory::iter::<SinkKind>().collect(), "sink", faults) else { continue };
        if let Err(error) = config.build(&cx) {
            faults.push(unbuildable(node, &error));
        }
        let known = |name: &String| metrics.iter().any(|known| known.name == *name || known.config.gives().may_give(&known.name, name));
        for name in config.metrics().iter().filter(|name| !known(name)) {
            let hint = crate::util::text::nearest(name, metrics.iter().map(|known| known.name.as_str()));
            let hint = hint.map(|hint| format!(", did you mean `{hint}`?")).unwrap_or_default();
            faults.push(Fault::new(place(node, "metrics"), format!("the monitor has no metric `{name}`{hint}")));
        }
        if sinks.iter().any(|known| known.queue() == config.queue()) {
            faults.push(Fault::new(&node.at, format!("the monitor publishes to `{}` twice", config.queue())));
        }
        sinks.push(config.into());
    }
    sinks
}

/// Hashes by key, so that it can be told what changed and nothing of what it was. A list's entries go by their names, where they
/// have some.
fn parts(tree: &Node) -> BTreeMap<String, String> {
    fn feed(node: &Node, key: &str, parts: &mut BTreeMap<String, String>) {
        let below = |name: &str| if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") };
        let named = |item: &Node| item.get("name").and_then(Node::as_str).map(str::to_owned);
        match &node.value {
            Value::Map(map) if !map.is_empty() => map.iter().for_each(|(name, _, value)| feed(value, &below(name), parts)),
            Value::Seq(items) if !items.is_empty() && items.iter().all(|item| named(item).is_some()) => {
                items.iter().for_each(|item| feed(item, &below(&named(item).unwrap_or_default()), parts));
            }
            _ => drop(parts.insert(key.to_owned(), fingerprint(node)[..8].to_owned())),
        }
    }
    let mut found = BTreeMap::new();
    feed(tree, "", &mut found);
    found
}

/// Over keys and values, not places: a comment or a blank line changes nothing.
fn fingerprint(tree: &Node) -> String {
    fn feed(node: &Node, hasher: &mut blake3::Hasher) {
        match &node.value {
            Value::Seq(items) => {
                hasher.update(format!("[{}", items.len()).as_bytes());
                items.iter().for_each(|item| feed(item, hasher));
            }
            Value::Map(map) => {
                let mut entries: Vec<_> = map.iter().collect();
                entries.sort_by(|a, b| a.0.cmp(&b.0));
                hasher.update(format!("{{{}", entries.len()).as_bytes());
                for (key, _, value) in entries {
                    hasher.update(format!("{}:{key}", key.len()).as_bytes());
                    feed(value, hasher);
                }
            }
            scalar => {
                let text = format!("{scalar:?}");
                hasher.update(format!("{}:{text}", text.len()).as_bytes());
            }
        }
    }
    let mut hasher = blake3::Hasher::new();
    feed(tree, &mut hasher);
    hasher.finalize().to_hex().to_string()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_comment_changes_no_fingerprint_and_a_value_does() {
        let print = |text: &str| fingerprint(&yaml::parse("m.yaml", text.as_bytes()).unwrap()[0]);
        assert_eq!(print("a: 1\nb: [x]"), print("# why\nb:\n  - x\na: 1\n"));
        let different: BTreeSet<String> = ["a: 1", "a: 2", "a: '1'", "a: [1]", "a: {b: 1}", "b: 1", "a: 1.0"].into_iter().map(print).collect();
        assert_eq!(different.len(), 7);
    }
}
