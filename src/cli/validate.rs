use std::path::PathBuf;

use super::{Failure, Overrides, block_on, monitors, print, settings};
use crate::daemon::wire;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Files or folders; faults elsewhere are left out [default: everything]
    paths: Vec<PathBuf>,
    /// Also reach sources and providers
    #[arg(long)]
    live: bool,
}

pub(super) fn validate(overrides: &Overrides, arguments: &Arguments) -> Result<(), Failure> {
    let settings = match settings(overrides) {
        Ok(settings) => settings,
        // An invalid file is what this command looks for.
        Err(Failure::Settings(faults)) => {
            print(&faults.iter().map(|fault| format!("{fault}\n")).collect::<String>())?;
            return Err(Failure::Problems);
        }
        Err(failure) => return Err(failure),
    };
    let loaded = monitors(&settings);
    let asked =
        |file: &str| arguments.paths.is_empty() || arguments.paths.iter().any(|path| PathBuf::from(file).starts_with(path.strip_prefix("./").unwrap_or(path)));
    let faults: Vec<String> = loaded.faults.iter().filter(|fault| asked(&fault.at.file)).map(|fault| format!("{fault}\n")).collect();
    print(&faults.concat())?;
    let mut sound = faults.is_empty();
    if arguments.live {
        sound &= block_on(live(&settings, &loaded))?;
    }
    if !sound {
        eprintln!("{} faults in {} files", faults.len(), loaded.files);
        return Err(Failure::Problems);
    }
    eprintln!("{} monitors in {} files: all sound", loaded.monitors.len(), loaded.files);
    Ok(())
}

/// Asks every provider and every monitor's source and sinks; true when all answer.
async fn live(settings: &crate::config::Settings, loaded: &crate::config::Loaded) -> Result<bool, Failure> {
    let http = wire::http(settings)?;
    let gateway = wire::gateway(settings, &http)?;
    let mut sound = true;
    let mut tell = |what: String, answer: Result<String, String>| {
        sound &= answer.is_ok();
        match answer {
            Ok(answer) => eprintln!("{what}: {answer}"),
            Err(error) => println!("{what}: {error}"),
        }
    };
    for name in settings.providers.keys() {
        tell(format!("provider {name}"), gateway.probe(name).await.map(|()| "answers".to_owned()).map_err(|error| error.to_string()));
    }
    let env = crate::pipeline::BuildEnv { connections: &settings.connections, http: &http, models: &gateway, base_dir: &settings.base_dir };
    for (name, spec) in &loaded.monitors {
        let monitor = crate::pipeline::Monitor::build(std::sync::Arc::clone(spec), &env)?;
        tell(format!("monitor {name}, source"), monitor.probe().await.map_err(|error| format!("{error:#}")));
        for (queue, sink) in &monitor.sinks {
            tell(format!("monitor {name}, sink {queue}"), sink.probe().await.map_err(|error| error.to_string()));
        }
    }
    Ok(sound)
}
