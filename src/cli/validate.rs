use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{Failure, Overrides, block_on, monitors, print};
use crate::{
    config::{Cache, DEFAULT_CONFIG, Loaded, MonitorSpec, Settings, load_monitors, read_settings},
    daemon::wire,
    schedule::clock::SystemClock,
    util::yaml::{Fault, Span},
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Files or folders; faults elsewhere are left out [default: everything]
    paths: Vec<PathBuf>,
    /// Also reach sources and providers
    #[arg(long)]
    live: bool,
}

pub(super) fn validate(overrides: &Overrides, arguments: &Arguments) -> Result<(), Failure> {
    // An invalid file is what this command looks for, so monitors are checked beside faults of the settings.
    let (settings, of_settings) = read_settings(overrides);
    print(&of_settings.iter().map(|fault| format!("{fault}\n")).collect::<String>())?;
    let Some(settings) = settings else { return Err(Failure::Problems) };
    let mut loaded = if arguments.paths.is_empty() { monitors(&settings) } else { chosen(&settings, overrides, &arguments.paths) };
    // The settings' own `.env` is read for both.
    loaded.faults.retain(|fault| !of_settings.contains(fault));
    print(&loaded.faults.iter().map(|fault| format!("{fault}\n")).collect::<String>())?;
    loaded.monitors.values().flat_map(|spec| &spec.warnings).for_each(|warning| eprintln!("warning: {warning}"));
    loaded.monitors.values().filter_map(|spec| plain_thresholds(spec)).for_each(|note| eprintln!("note: {note}"));
    let faults = of_settings.len() + loaded.faults.len();
    let mut sound = faults == 0;
    if arguments.live && of_settings.is_empty() {
        sound &= block_on(live(&settings, &loaded))?;
    }
    if !sound {
        eprintln!("{faults} faults; {} files of monitors", loaded.files);
        return Err(Failure::Problems);
    }
    eprintln!("{} monitors in {} files: all sound", loaded.monitors.len(), loaded.files);
    Ok(())
}

/// Alerts that report luck as readily as trouble. No fault: somebody may want just that.
fn plain_thresholds(spec: &MonitorSpec) -> Option<String> {
    let plain: Vec<&str> =
        spec.alerts.iter().filter(|alert| alert.evidence.is_none() && alert.when.question().is_ok()).map(|alert| alert.name.as_str()).collect();
    if plain.is_empty() {
        return None;
    }
    let what = if plain.len() == 1 { "is a plain threshold, which promises" } else { "are plain thresholds, which promise" };
    Some(format!("{}: {} {what} nothing; `confidence: 0.99` gives at most one false alarm in 100 days", spec.name, plain.join(", ")))
}

/// The monitors of some files and folders, in the monitors' folder (under its defaults) or elsewhere.
pub(super) fn chosen(settings: &Settings, overrides: &Overrides, paths: &[PathBuf]) -> Loaded {
    let real = |path: &Path| std::fs::canonicalize(path);
    let mut chosen = Loaded::default();
    for path in paths {
        let wanted = match real(path) {
            Ok(wanted) => wanted,
            Err(error) => {
                let at = Span { file: path.display().to_string().into(), line: 1, column: 1 };
                chosen.faults.push(Fault { at, message: format!("cannot be read: {error}") });
                continue;
            }
        };
        let config = overrides.config.as_deref().unwrap_or(Path::new(DEFAULT_CONFIG));
        if real(config).is_ok_and(|config| config == wanted) {
            continue;
        }
        let inside = real(&settings.monitors).is_ok_and(|monitors| wanted.starts_with(monitors));
        let root = match path.parent() {
            _ if inside => settings.monitors.as_path(),
            _ if wanted.is_dir() => path,
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let loaded = load_monitors(root, settings, &mut Cache::default());
        // Of the chosen ones, and of what lies under them: `_defaults.yaml` and `.env` of the folders above.
        let of_chosen = |file: &Path| {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            real(file).is_ok_and(|file| {
                let layer = name.starts_with("_defaults.") || name == ".env";
                file.starts_with(&wanted) || layer && file.parent().is_some_and(|folder| wanted.starts_with(folder))
            })
        };
        let before = chosen.monitors.len() + chosen.faults.len();
        chosen.faults.extend(loaded.faults.into_iter().filter(|fault| of_chosen(Path::new(&*fault.at.file))));
        chosen.monitors.extend(loaded.monitors.into_iter().filter(|(_, spec)| of_chosen(&spec.file)));
        chosen.files += if wanted.is_dir() { loaded.files } else { 1 };
        if chosen.monitors.len() + chosen.faults.len() == before {
            let at = Span { file: path.display().to_string().into(), line: 1, column: 1 };
            chosen.faults.push(Fault {
                at,
                message: "holds no monitor: those are YAML files whose names begin with neither `_` nor `.` and do not end in `.test` or `_test`".to_owned(),
            });
        }
    }
    chosen
}

/// Asks every provider and every monitor's source and sinks; true when all answer.
async fn live(settings: &Settings, loaded: &Loaded) -> Result<bool, Failure> {
    let http = wire::http(settings)?;
    let (gateway, _) = wire::gateway(settings, &http, None, Arc::new(SystemClock))?;
    let mut sound = true;
    let mut tell = |what: String, answer: Result<String, String>| {
        sound &= answer.is_ok();
        match answer {
            Ok(answer) => eprintln!("{what}: {answer}"),
            Err(error) => println!("{what}: {error}"),
        }
    };
    for name in settings.providers.keys() {
        tell(format!("provider {name}"), gateway.probe(name).await.map(|_| "answers".to_owned()).map_err(|error| error.to_string()));
    }
    let prompts = wire::prompts(settings, &http);
    for prompt in wire::uses(loaded.monitors.values()).into_iter().map(|one| one.prompt).collect::<BTreeSet<_>>() {
        tell(format!("prompt {prompt}"), prompts.current(&prompt).await.map(|kept| format!("v{}", kept.version)));
    }
    let runs = wire::no_runs();
    let base_dir = &settings.base_dir;
    let processes = &wire::no_processes();
    let connections = &settings.connections;
    let env = crate::pipeline::BuildEnv { connections, http: &http, models: &gateway, prompts: &prompts, processes, runs: &runs, base_dir };
    for (name, spec) in &loaded.monitors {
        let monitor = crate::pipeline::Monitor::build(std::sync::Arc::clone(spec), &env)?;
        tell(format!("monitor {name}, source"), monitor.probe().await.map_err(|error| format!("{error:#}")));
        for (queue, sink) in &monitor.sinks {
            tell(format!("monitor {name}, sink {queue}"), sink.probe().await.map_err(|error| error.to_string()));
        }
    }
    Ok(sound)
}
