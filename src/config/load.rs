//! Files -> trees -> settings and monitors. Reads files and the environment; judges nothing itself.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    MonitorSpec, Settings, check,
    interpolate::{Env, interpolate, read_env},
    settings,
};
use crate::util::yaml::{self, Fault, Node, Span, Value};

/// What the command line says over the file.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// `--config`; without it `assayd.yaml`, which may be missing.
    pub config: Option<PathBuf>,
    pub monitors: Option<PathBuf>,
    pub state: Option<PathBuf>,
    pub log_level: Option<String>,
}

pub const DEFAULT_CONFIG: &str = "assayd.yaml";

fn fault(file: &Path, message: impl Into<String>) -> Fault {
    Fault { at: Span { file: shown(file).into(), line: 1, column: 1 }, message: message.into() }
}

/// A path as the user would type it.
fn shown(file: &Path) -> String {
    let file = file.strip_prefix("./").unwrap_or(file);
    file.display().to_string()
}

/// Reads `assayd.yaml`.
///
/// # Errors
/// Every fault of the file.
pub fn load_settings(overrides: &Overrides) -> Result<Settings, Vec<Fault>> {
    let path = overrides.config.clone().unwrap_or_else(|| DEFAULT_CONFIG.into());
    let base = path.parent().map(Path::to_owned).unwrap_or_default();
    let mut faults = Vec::new();
    let empty = || Node::new(Span { file: shown(&path).into(), line: 1, column: 1 }, Value::Map(Vec::new()));
    let mut tree = match std::fs::read(&path) {
        Ok(bytes) => match yaml::parse(&shown(&path), &bytes) {
            Ok(mut documents) if documents.len() < 2 => documents.pop().unwrap_or_else(empty),
            Ok(documents) => return Err(vec![Fault::new(&documents[1].at, "assayd.yaml has one document; monitors go into the monitors folder")]),
            Err(fault) => return Err(vec![fault]),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && overrides.config.is_none() => empty(),
        Err(error) => return Err(vec![fault(&path, format!("cannot be read: {error}"))]),
    };
    let env = Env { layers: env_file(&base, &mut faults).into_iter().collect() };
    interpolate(&mut tree, &env, &mut faults);
    let settings = settings::read(&tree, &base, overrides, &mut faults);
    match settings {
        Some(settings) if faults.is_empty() => Ok(settings),
        _ => Err(faults),
    }
}

fn env_file(folder: &Path, faults: &mut Vec<Fault>) -> Option<Arc<BTreeMap<String, String>>> {
    let path = folder.join(".env");
    match std::fs::read_to_string(&path) {
        Ok(text) => Some(Arc::new(read_env(&shown(&path), &text, faults))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => {
            faults.push(fault(&path, format!("cannot be read: {error}")));
            None
        }
    }
}

/// What the monitors' folder holds.
#[derive(Debug, Default)]
pub struct Loaded {
    pub monitors: BTreeMap<String, Arc<MonitorSpec>>,
    pub faults: Vec<Fault>,
    /// Files with at least one fault.
    pub broken: BTreeSet<PathBuf>,
    pub files: usize,
}

/// What earlier loads found, so that a changed file among a thousand costs one file's work.
#[derive(Debug, Default)]
pub struct Cache {
    files: HashMap<PathBuf, (blake3::Hash, Arc<Checked>)>,
}

/// The monitors of one file.
#[derive(Debug, Default)]
struct Checked {
    monitors: Vec<(Arc<MonitorSpec>, Span)>,
    faults: Vec<Fault>,
}

/// A file to be loaded, with the layers of its folder.
struct Candidate {
    path: PathBuf,
    layers: Arc<Layers>,
}

/// What a folder lays under its monitors.
#[derive(Debug, Default, Clone)]
struct Layers {
    /// Nearest first.
    defaults: Vec<Arc<Node>>,
    env: Env,
    /// Over the bytes of all of it.
    hash: blake3::Hasher,
}

/// Loads every monitor below `dir`. Faults never stop what is sound.
#[must_use]
pub fn load_monitors(dir: &Path, settings: &Settings, cache: &mut Cache) -> Loaded {
    let mut loaded = Loaded::default();
    let mut layers = Layers::default();
    layers.env.layers.extend(env_file(&settings.base_dir, &mut loaded.faults));
    layers.hash.update(format!("{:?}", layers.env).as_bytes());
    let mut candidates = Vec::new();
    walk(dir, layers, &mut candidates, &mut loaded, 0);
    candidates.sort_by(|a, b| a.path.cmp(&b.path));
    loaded.files = candidates.len();

    let before = std::mem::take(&mut cache.files);
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(candidates.len().div_ceil(16).max(1));
    let chunk = candidates.len().div_ceil(threads).max(1);
    let checked: Vec<(PathBuf, blake3::Hash, Arc<Checked>)> = std::thread::scope(|scope| {
        let workers: Vec<_> =
            candidates.chunks(chunk).map(|chunk| scope.spawn(|| chunk.iter().map(|file| check_file(file, settings, &before)).collect::<Vec<_>>())).collect();
        // A panic in a check is a defect of ours: let it be seen.
        workers.into_iter().flat_map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });

    let mut places: HashMap<String, Span> = HashMap::new();
    for (path, hash, checked) in checked {
        let mut faults = checked.faults.clone();
        for (monitor, at) in &checked.monitors {
            match places.get(&monitor.name) {
                Some(first) => faults.push(Fault::new(at, format!("the name `{}` is taken: it stands in {first} too", monitor.name))),
                None => {
                    places.insert(monitor.name.clone(), at.clone());
                    loaded.monitors.insert(monitor.name.clone(), Arc::clone(monitor));
                }
            }
        }
        if !faults.is_empty() {
            loaded.broken.insert(path.clone());
        }
        loaded.faults.extend(faults);
        cache.files.insert(path, (hash, checked));
    }
    loaded
}

/// Folders below each other at most: a symlink that leads upwards ends here.
const MAX_DEPTH: usize = 16;

fn walk(dir: &Path, mut layers: Layers, candidates: &mut Vec<Candidate>, loaded: &mut Loaded, depth: usize) {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) => {
            let hint = if depth == 0 && error.kind() == std::io::ErrorKind::NotFound { "the monitors folder is missing" } else { "cannot be read" };
            loaded.faults.push(fault(dir, format!("{hint}: {error}")));
            loaded.broken.insert(dir.to_owned());
            return;
        }
    };
    if depth > 0
        && let Some(env) = env_file(dir, &mut loaded.faults)
    {
        layers.hash.update(format!("{env:?}").as_bytes());
        layers.env.layers.insert(0, env);
    }
    defaults(dir, &mut layers, loaded);
    let layers = Arc::new(layers);
    for entry in entries {
        let path = match entry {
            Ok(entry) => entry.path(),
            Err(error) => {
                loaded.faults.push(fault(dir, format!("cannot be read: {error}")));
                continue;
            }
        };
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // `_defaults.yaml`, editors' swap files, `..data` of a ConfigMap.
        if name.starts_with(['_', '.']) || name.ends_with('~') {
            continue;
        }
        if path.is_dir() {
            if depth < MAX_DEPTH {
                walk(&path, (*layers).clone(), candidates, loaded, depth + 1);
            }
        } else if path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml") {
            candidates.push(Candidate { path, layers: Arc::clone(&layers) });
        }
    }
}

fn defaults(dir: &Path, layers: &mut Layers, loaded: &mut Loaded) {
    for name in ["_defaults.yaml", "_defaults.yml"] {
        let path = dir.join(name);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => {
                loaded.faults.push(fault(&path, format!("cannot be read: {error}")));
                continue;
            }
        };
        layers.hash.update(&bytes);
        match yaml::parse(&shown(&path), &bytes) {
            Ok(mut documents) if !documents.is_empty() => layers.defaults.insert(0, Arc::new(documents.swap_remove(0))),
            Ok(_) => {}
            Err(fault) => loaded.faults.push(fault),
        }
    }
}

fn check_file(file: &Candidate, settings: &Settings, before: &HashMap<PathBuf, (blake3::Hash, Arc<Checked>)>) -> (PathBuf, blake3::Hash, Arc<Checked>) {
    let bytes = match std::fs::read(&file.path) {
        Ok(bytes) => bytes,
        Err(error) => {
            let checked = Checked { faults: vec![fault(&file.path, format!("cannot be read: {error}"))], ..Checked::default() };
            return (file.path.clone(), blake3::hash(b""), Arc::new(checked));
        }
    };
    let hash = file.layers.hash.clone().update(&bytes).finalize();
    if let Some((_, checked)) = before.get(&file.path).filter(|(known, _)| *known == hash) {
        return (file.path.clone(), hash, Arc::clone(checked));
    }
    let mut checked = Checked::default();
    match yaml::parse(&shown(&file.path), &bytes) {
        Err(fault) => checked.faults.push(fault),
        Ok(documents) => {
            for mut tree in documents {
                for defaults in &file.layers.defaults {
                    merge(&mut tree, defaults, true);
                }
                interpolate(&mut tree, &file.layers.env, &mut checked.faults);
                let at = tree.at.clone();
                if let Some(spec) = check::monitor(&tree, &file.path, settings, &mut checked.faults) {
                    checked.monitors.push((Arc::new(spec), at));
                }
            }
        }
    }
    (file.path.clone(), hash, Arc::new(checked))
}

/// Lays `under` under `node`: maps merge key by key, lists and `schedule` are replaced whole.
fn merge(node: &mut Node, under: &Node, top: bool) {
    let (Value::Map(over), Value::Map(under)) = (&mut node.value, &under.value) else { return };
    for (key, at, value) in under {
        match over.iter_mut().find(|(known, ..)| known == key) {
            Some((.., mine)) => {
                if !(top && key == "schedule") {
                    merge(mine, value, false);
                }
            }
            None => over.push((key.clone(), at.clone(), value.clone())),
        }
    }
}
