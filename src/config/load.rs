//! Files -> trees -> settings and monitors. Reads files and the environment; judges nothing itself.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
};

use super::{
    MonitorSpec, Settings, check,
    interpolate::{Env, Used, interpolate, read_env},
    secrets::{Keyring, Unneeded},
    settings,
    usertests::is_test,
};
use crate::util::{
    secret::{self, Lookup},
    yaml::{self, Fault, Node, Span, Value},
};

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
pub(super) fn shown(file: &Path) -> String {
    let file = file.strip_prefix("./").unwrap_or(file);
    file.display().to_string()
}

/// Reads `assayd.yaml`, and looks up the keys that it names.
///
/// # Errors
/// Every fault of the file.
pub fn load_settings(overrides: &Overrides) -> Result<Settings, Vec<Fault>> {
    sound(read_settings(overrides))
}

/// The same for a command that calls nobody: keys that stand elsewhere are not looked up.
///
/// # Errors
/// Every fault of the file, except keys that are not found.
pub fn load_settings_without_keys(overrides: &Overrides) -> Result<Settings, Vec<Fault>> {
    sound(read_with(overrides, |_, _| Rc::new(Unneeded)))
}

fn sound((settings, faults): (Option<Settings>, Vec<Fault>)) -> Result<Settings, Vec<Fault>> {
    settings.filter(|_| faults.is_empty()).ok_or(faults)
}

/// Reads `assayd.yaml`, with every fault of it: beside faults, the settings are what is left without the wrong parts, good
/// for checking monitors against and for nothing else.
#[must_use]
pub fn read_settings(overrides: &Overrides) -> (Option<Settings>, Vec<Fault>) {
    read_with(overrides, |tree, env| {
        // What is wrong with it is told by who reads the rest.
        let named = tree.get("state").and_then(|node| yaml::read(node, &mut Vec::new()));
        let base = base_of(overrides);
        let state = settings::state_folder(named, &base, overrides);
        Rc::new(Keyring::new(env.clone(), base, state))
    })
}

fn read_with(overrides: &Overrides, lookup: impl FnOnce(&Node, &Env) -> Rc<dyn Lookup>) -> (Option<Settings>, Vec<Fault>) {
    let mut tree = match parse_settings(overrides) {
        Ok(tree) => tree,
        Err(fault) => return (None, vec![fault]),
    };
    let base = base_of(overrides);
    let mut faults = Vec::new();
    let env = Env { layers: env_file(&base, &mut faults).into_iter().collect() };
    let mut used = Used::default();
    interpolate(&mut tree, &env, &mut used, &mut faults);
    let settings = secret::looking_up(lookup(&tree, &env), || settings::read(&tree, &base, overrides, &mut faults));
    used.hide(&mut faults);
    (settings, faults)
}

/// Folder of the settings file.
fn base_of(overrides: &Overrides) -> PathBuf {
    overrides.config.as_deref().unwrap_or(Path::new(DEFAULT_CONFIG)).parent().map(Path::to_owned).unwrap_or_default()
}

fn parse_settings(overrides: &Overrides) -> Result<Node, Fault> {
    let path = overrides.config.as_deref().unwrap_or(Path::new(DEFAULT_CONFIG));
    let empty = || Node::new(Span { file: shown(path).into(), line: 1, column: 1 }, Value::Map(Vec::new()));
    match std::fs::read(path) {
        Ok(bytes) => match yaml::parse(&shown(path), &bytes)? {
            mut documents if documents.len() < 2 => Ok(documents.pop().unwrap_or_else(empty)),
            documents => Err(Fault::new(&documents[1].at, "assayd.yaml has one document; monitors go into the monitors folder")),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && overrides.config.is_none() => Ok(empty()),
        Err(error) => Err(fault(path, format!("cannot be read: {error}"))),
    }
}

impl Keyring {
    /// The keyring alone, for the commands that fill the store with what the rest of the settings needs.
    ///
    /// # Errors
    /// Faults of what it takes: the file, `.env` and `state`.
    pub fn open(overrides: &Overrides) -> Result<Self, Vec<Fault>> {
        let tree = parse_settings(overrides).map_err(|fault| vec![fault])?;
        let base = base_of(overrides);
        let mut faults = Vec::new();
        let env = Env { layers: env_file(&base, &mut faults).into_iter().collect() };
        let (mut named, mut used) = (None, Used::default());
        if let Some(mut node) = tree.get("state").filter(|_| overrides.state.is_none()).cloned() {
            interpolate(&mut node, &env, &mut used, &mut faults);
            named = yaml::read(&node, &mut faults);
        }
        used.hide(&mut faults);
        let state = settings::state_folder(named, &base, overrides);
        if faults.is_empty() { Ok(Self::new(env, base, state)) } else { Err(faults) }
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
    /// Names of monitors whose documents are faulty, where a name can be read.
    pub unfit: BTreeSet<String>,
    /// The same by file, as the user would type it.
    pub unfit_in: BTreeMap<String, Vec<String>>,
    /// Files with at least one fault.
    pub broken: BTreeSet<PathBuf>,
    pub files: usize,
}

/// What earlier loads found, so that a changed file among a thousand costs one file's work.
#[derive(Debug, Default)]
pub struct Cache {
    files: HashMap<PathBuf, Known>,
}

/// What a look found of a file.
#[derive(Debug)]
struct Known {
    /// Of the folder's layers.
    layers: blake3::Hash,
    /// Of the layers and the file.
    hash: blake3::Hash,
    /// `None` where the file could not be read.
    stamp: Option<Stamp>,
    /// Two looks found the same under the same stamp. The clock of a file system ticks in milliseconds: a file that was
    /// read once may be written again within the tick, and keeps its stamp.
    confirmed: bool,
    checked: Arc<Checked>,
}

/// What changes when a file is written or replaced: inode, size, and the times of content and inode in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp(u64, u64, [i64; 4]);

impl Stamp {
    fn of(file: &Path) -> Option<Self> {
        let of = std::fs::metadata(file).ok()?;
        Some(Self(of.ino(), of.size(), [of.mtime(), of.mtime_nsec(), of.ctime(), of.ctime_nsec()]))
    }
}

/// The monitors of one file.
#[derive(Debug, Default)]
struct Checked {
    monitors: Vec<(Arc<MonitorSpec>, Span)>,
    /// Names of the others.
    unfit: Vec<String>,
    faults: Vec<Fault>,
    /// It reads, but something of its folder does not.
    broken: bool,
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
    /// The folder whose `.env` came last: the monitors' folder may be the settings' own.
    env_of: Option<PathBuf>,
    /// One of them does not read: what its monitors would be without it, nobody wrote.
    broken: bool,
    /// Over the bytes of all of it.
    hash: blake3::Hasher,
}

impl Layers {
    /// The `.env` of a folder, over those above it.
    fn add_env(&mut self, folder: &Path, faults: &mut Vec<Fault>) {
        let real = real_path(folder);
        if self.env_of.as_ref() == Some(&real) {
            return;
        }
        self.env_of = Some(real);
        let before = faults.len();
        if let Some(env) = env_file(folder, faults) {
            self.hash.update(format!("{env:?}").as_bytes());
            self.env.layers.insert(0, env);
        }
        self.judge(faults, before);
    }

    /// The `_defaults.yaml` of a folder, over those above it.
    fn add_defaults(&mut self, folder: &Path, faults: &mut Vec<Fault>) {
        let before = faults.len();
        for name in ["_defaults.yaml", "_defaults.yml"] {
            let path = folder.join(name);
            let bytes = match std::fs::read(&path) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => {
                    faults.push(fault(&path, format!("cannot be read: {error}")));
                    continue;
                }
            };
            self.hash.update(&bytes);
            match yaml::parse(&shown(&path), &bytes) {
                Ok(mut documents) if documents.len() < 2 => match documents.pop() {
                    Some(defaults) if defaults.as_map().is_some() => self.defaults.insert(0, Arc::new(defaults)),
                    Some(other) => faults.push(Fault::new(&other.at, format!("defaults are a mapping, found {}", other.describe()))),
                    None => {}
                },
                Ok(documents) => faults.push(Fault::new(&documents[1].at, "defaults are one document")),
                Err(fault) => faults.push(fault),
            }
        }
        self.judge(faults, before);
    }

    /// Faults since `before` make what is below broken, and another thing than it was.
    fn judge(&mut self, faults: &[Fault], before: usize) {
        if faults.len() > before {
            self.broken = true;
            self.hash.update(b"broken");
        }
    }
}

/// Loads every monitor below `dir`. Faults never stop what is sound.
#[must_use]
pub fn load_monitors(dir: &Path, settings: &Settings, cache: &mut Cache) -> Loaded {
    let mut loaded = Loaded::default();
    let mut layers = Layers::default();
    layers.add_env(&settings.base_dir, &mut loaded.faults);
    let mut candidates = Vec::new();
    walk(dir, layers, &mut Vec::new(), &mut candidates, &mut loaded);
    candidates.sort_by(|a, b| a.path.cmp(&b.path));
    loaded.files = candidates.len();

    let before = std::mem::take(&mut cache.files);
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(candidates.len().div_ceil(16).max(1));
    let chunk = candidates.len().div_ceil(threads).max(1);
    let looked: Vec<(PathBuf, Known)> = std::thread::scope(|scope| {
        let workers: Vec<_> = candidates
            .chunks(chunk)
            .map(|chunk| scope.spawn(|| chunk.iter().map(|file| (file.path.clone(), look_at(file, settings, before.get(&file.path)))).collect::<Vec<_>>()))
            .collect();
        // A panic in a check is a defect of ours: let it be seen.
        workers.into_iter().flat_map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });

    let mut places: HashMap<String, Span> = HashMap::new();
    for (path, known) in looked {
        let checked = &known.checked;
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
        if !faults.is_empty() || checked.broken {
            loaded.broken.insert(path.clone());
        }
        loaded.unfit.extend(checked.unfit.iter().cloned());
        if !checked.unfit.is_empty() {
            loaded.unfit_in.insert(shown(&path), checked.unfit.clone());
        }
        loaded.faults.extend(faults);
        cache.files.insert(path, known);
    }
    loaded
}

/// Without symlinks; as it is, where that cannot be told.
fn real_path(folder: &Path) -> PathBuf {
    let named = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    named.canonicalize().unwrap_or_else(|_| folder.to_owned())
}

/// Folders below each other at most.
const MAX_DEPTH: usize = 16;

/// `above`: the folders this one lies in, by their real paths.
fn walk(dir: &Path, mut layers: Layers, above: &mut Vec<PathBuf>, candidates: &mut Vec<Candidate>, loaded: &mut Loaded) {
    let depth = above.len();
    // A symlink that leads upwards would go round for ever.
    let real = real_path(dir);
    if depth >= MAX_DEPTH || above.contains(&real) {
        return;
    }
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) => {
            let hint = if depth == 0 && error.kind() == std::io::ErrorKind::NotFound { "the monitors folder is missing" } else { "cannot be read" };
            loaded.faults.push(fault(dir, format!("{hint}: {error}")));
            loaded.broken.insert(dir.to_owned());
            return;
        }
    };
    layers.add_env(dir, &mut loaded.faults);
    layers.add_defaults(dir, &mut loaded.faults);
    let layers = Arc::new(layers);
    above.push(real);
    for entry in entries {
        let path = match entry {
            Ok(entry) => entry.path(),
            Err(error) => {
                loaded.faults.push(fault(dir, format!("cannot be read: {error}")));
                continue;
            }
        };
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // `_defaults.yaml`, editors' swap files, `..data` of a ConfigMap, tests of monitors.
        if name.starts_with(['_', '.']) || name.ends_with('~') || is_test(&name) && !path.is_dir() {
            continue;
        }
        if path.is_dir() {
            walk(&path, (*layers).clone(), above, candidates, loaded);
        } else if path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml") {
            candidates.push(Candidate { path, layers: Arc::clone(&layers) });
        }
    }
    above.pop();
}

/// A file that is as it was costs a question to the file system, one that was touched a reading, one that changed a check.
fn look_at(file: &Candidate, settings: &Settings, before: Option<&Known>) -> Known {
    let layers = file.layers.hash.finalize();
    let stamp = Stamp::of(&file.path);
    let same = before.filter(|known| known.layers == layers && known.stamp.is_some() && known.stamp == stamp);
    // A network mount's times are coarse, and kept for a while on this side.
    if let Some(known) = same.filter(|known| known.confirmed && settings.poll.is_none()) {
        return Known { checked: Arc::clone(&known.checked), ..*known };
    }
    let bytes = match std::fs::read(&file.path) {
        Ok(bytes) => bytes,
        Err(error) => {
            let checked = Checked { faults: vec![fault(&file.path, format!("cannot be read: {error}"))], ..Checked::default() };
            return Known { layers, hash: layers, stamp: None, confirmed: false, checked: Arc::new(checked) };
        }
    };
    let hash = file.layers.hash.clone().update(&bytes).finalize();
    if let Some(known) = before.filter(|known| known.hash == hash && known.stamp.is_some()) {
        return Known { layers, hash, stamp, confirmed: same.is_some(), checked: Arc::clone(&known.checked) };
    }
    let checked = check_file(file, &bytes, settings);
    // What is wrong may be wrong in another file that this one names.
    let stamp = stamp.filter(|_| checked.faults.is_empty());
    Known { layers, hash, stamp, confirmed: false, checked: Arc::new(checked) }
}

fn check_file(file: &Candidate, bytes: &[u8], settings: &Settings) -> Checked {
    let mut checked = Checked { broken: file.layers.broken, ..Checked::default() };
    match yaml::parse(&shown(&file.path), bytes) {
        Err(fault) => checked.faults.push(fault),
        Ok(_) if checked.broken => {}
        Ok(documents) => {
            for mut tree in documents {
                for defaults in &file.layers.defaults {
                    merge(&mut tree, defaults, true);
                }
                let (mut used, mut faults) = (Used::default(), Vec::new());
                interpolate(&mut tree, &file.layers.env, &mut used, &mut faults);
                let at = tree.at.clone();
                let keyring = Keyring::new(file.layers.env.clone(), settings.base_dir.clone(), settings.state.clone());
                let read = || check::monitor(&tree, &file.path, settings, &mut faults);
                match secret::looking_up(Rc::new(keyring), read) {
                    Some(spec) => checked.monitors.push((Arc::new(spec), at)),
                    None => checked.unfit.extend(tree.get("name").and_then(Node::as_str).map(str::to_owned)),
                }
                used.hide(&mut faults);
                checked.faults.append(&mut faults);
            }
        }
    }
    if checked.faults.len() > MOST_FAULTS {
        let more = checked.faults.len() - MOST_FAULTS;
        checked.faults.truncate(MOST_FAULTS);
        checked.faults.push(fault(&file.path, format!("and {more} more faults")));
    }
    checked
}

/// Faults of one file that are told one by one.
const MOST_FAULTS: usize = 200;

/// Lays `under` under `node`: maps merge key by key, lists and `schedule` are replaced whole.
fn merge(node: &mut Node, under: &Node, top: bool) {
    let (Value::Map(over), Value::Map(under)) = (&mut node.value, &under.value) else { return };
    let known: HashMap<String, usize> = over.iter().enumerate().map(|(at, (key, ..))| (key.clone(), at)).collect();
    for (key, at, value) in under {
        match known.get(key.as_str()) {
            Some(&mine) => {
                if !(top && key == "schedule") {
                    merge(&mut over[mine].2, value, false);
                }
            }
            None => over.push((key.clone(), at.clone(), value.clone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_was_found_the_same_is_still_seen_to_change() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("assayd.yaml");
        std::fs::write(&config, "{}").unwrap();
        let settings = load_settings(&Overrides { config: Some(config), ..Overrides::default() }).unwrap();
        let monitors = dir.path().join("monitors");
        std::fs::create_dir(&monitors).unwrap();
        let write = |max: u32| {
            let text = format!("schedule: {{ every: 1h }}\nsource: {{ type: file, path: x }}\nmetrics: [{{ name: a, type: length, max: {max} }}]\n");
            std::fs::write(monitors.join("m.yaml"), text).unwrap();
        };
        let mut cache = Cache::default();
        let mut fingerprint = || load_monitors(&monitors, &settings, &mut cache).monitors["m"].fingerprint.clone();
        write(100);
        let first = fingerprint();
        for _ in 0..3 {
            assert_eq!(fingerprint(), first);
        }
        // As long as before: only its times tell.
        write(200);
        let second = fingerprint();
        assert_ne!(second, first);
        std::fs::write(monitors.join("_defaults.yaml"), "description: of the folder\n").unwrap();
        assert_ne!(fingerprint(), second, "what lies under a file is a part of it");
    }
}
