//! Rules of the house that no compiler keeps: which folder may use which, and what every file owes its reader.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// What a folder of src/ may use, beside itself. Single edges beyond this are in [`ALSO`].
const MAY_USE: [(&str, &[&str]); 21] = [
    ("main", &["cli"]),
    ("cli", &["daemon", "config", "control", OPEN]),
    (
        "daemon",
        &[
            "web",
            "config",
            "pipeline",
            "control",
            "schedule",
            "alerting",
            "statistics",
            "connections",
            "sources",
            "metrics",
            "prompts",
            "gateway",
            "providers",
            "sinks",
            "store",
            OPEN,
        ],
    ),
    ("web", &["control", "prompts", "providers", "store", OPEN]),
    ("config", &["schedule", "alerting", "statistics", "connections", "sources", "metrics", "providers", "sinks", "store", OPEN]),
    ("pipeline", &["schedule", "alerting", "statistics", "config", "connections", "sources", "metrics", "providers", "sinks", "store", OPEN]),
    ("sources", &["connections", OPEN]),
    ("metrics", &["providers", OPEN]),
    ("prompts", &["connections", "metrics", "schedule", "store", OPEN]),
    ("gateway", &["connections", "providers", "store", "schedule", OPEN]),
    ("providers", &[OPEN]),
    ("sinks", &["connections", OPEN]),
    ("store", &[OPEN]),
    ("alerting", &["statistics", "model", "util"]),
    ("statistics", &[]),
    ("schedule", &["model", "util"]),
    ("control", &["alerting", OPEN]),
    ("connections", &["util"]),
    ("telemetry", &["model"]),
    ("model", &[]),
    ("util", &[]),
];

/// Edges that the map does not have, each with its reason.
const ALSO: [(&str, &str, &str); 9] = [
    ("cli", "alerting", "`simulate` tries the alerts, which are pure"),
    ("cli", "statistics", "figures of `simulate` and `gate`"),
    ("cli", "store", "commands that only read work beside a running daemon, on the store itself"),
    ("cli", "schedule", "`next` and `status` show the plan, which is pure"),
    ("cli", "pipeline", "`once` shows a run's progress, `validate --live` probes a monitor as the daemon would build it"),
    ("cli", "providers", "`infer` speaks of questions and replies, as the contract does"),
    ("cli", "prompts", "`prompts list` shows which monitors judge with which prompts"),
    ("cli", "sinks", "`postgres init` makes the tables that the sink writes"),
    ("store", "sinks", "the outbox keeps what the sinks' contract calls a `Delivery`"),
];

/// Stands for what is open to all: model, telemetry and util.
const OPEN: &str = "model, telemetry, util";

/// Nobody reads further.
const LONGEST_FILE: usize = 600;

struct Source {
    /// From src/ on.
    path: PathBuf,
    text: String,
}

impl Source {
    /// The folder, or the file that stands for one.
    fn folder(&self) -> String {
        let first = self.path.components().next().unwrap().as_os_str().to_string_lossy();
        first.trim_end_matches(".rs").to_owned()
    }

    /// Lines without comments.
    fn code(&self) -> impl Iterator<Item = &str> {
        self.text.lines().filter(|line| !line.trim_start().starts_with("//"))
    }
}

fn sources() -> Vec<Source> {
    fn walk(root: &Path, folder: &Path, found: &mut Vec<Source>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(root, &path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(Source { path: path.strip_prefix(root).unwrap().to_owned(), text: fs::read_to_string(&path).unwrap() });
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    walk(&root, &root, &mut found);
    found.sort_by(|a, b| a.path.cmp(&b.path));
    assert!(found.len() > 20);
    found
}

/// The modules named directly behind `crate::`, groups included.
fn uses(code: &str) -> BTreeSet<String> {
    let word = |text: &str| text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + "crate::".len()..];
        let Some(group) = rest.strip_prefix('{') else {
            found.insert(word(rest));
            continue;
        };
        let mut depth = 0;
        let mut entry = true;
        for (i, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => entry = true,
                c if entry && !c.is_whitespace() => {
                    entry = false;
                    found.insert(word(&group[i..]));
                }
                _ => {}
            }
        }
    }
    found.remove("");
    found
}

#[test]
fn a_folder_uses_only_what_the_map_gives_it() {
    let mut breaches = Vec::new();
    for source in sources() {
        let folder = source.folder();
        if folder == "lib" {
            continue;
        }
        let Some((_, allowed)) = MAY_USE.iter().find(|(name, _)| *name == folder) else {
            breaches.push(format!("src/{}: the map has no `{folder}`", source.path.display()));
            continue;
        };
        // The binary names its own library from outside.
        let code = source.code().collect::<Vec<_>>().join("\n").replace("assayd::", "crate::");
        for used in uses(&code) {
            let open = allowed.contains(&OPEN) && OPEN.split(", ").any(|name| name == used);
            let also = ALSO.iter().any(|(from, to, _)| *from == folder && *to == used);
            if used != folder && !open && !also && !allowed.contains(&used.as_str()) {
                breaches.push(format!("src/{}: `{folder}` may not use `{used}`", source.path.display()));
            }
        }
    }
    assert!(breaches.is_empty(), "{}", breaches.join("\n"));
}

#[test]
fn every_edge_beside_the_map_is_needed() {
    let sources = sources();
    for (from, to, reason) in ALSO {
        let used = sources.iter().filter(|source| source.folder() == from).any(|source| uses(&source.code().collect::<Vec<_>>().join("\n")).contains(to));
        assert!(used && !reason.is_empty(), "`{from}` no longer uses `{to}`: take the edge out");
    }
}

#[test]
fn groups_of_uses_are_read() {
    let code = "use crate::{\n    connections::{Connections, slack::X},\n    util::http,\n};\nlet a = crate::model::Trace;";
    assert_eq!(uses(code).into_iter().collect::<Vec<_>>(), ["connections", "model", "util"]);
}

#[test]
fn every_folder_says_what_it_is_for() {
    let silent: Vec<_> = sources()
        .iter()
        .filter(|source| source.path.ends_with("mod.rs") && !source.text.starts_with("//!"))
        .map(|source| source.path.display().to_string())
        .collect();
    assert!(silent.is_empty(), "no `//!` on top of {silent:?}");
}

#[test]
fn no_file_is_too_long_to_read() {
    let long: Vec<_> =
        sources().iter().map(|source| (source.path.display().to_string(), source.text.lines().count())).filter(|(_, lines)| *lines > LONGEST_FILE).collect();
    assert!(long.is_empty(), "over {LONGEST_FILE} lines: {long:?}");
}

#[test]
fn tasks_are_begun_in_one_place() {
    let spawning = |source: &Source| source.code().any(|line| ["tokio::spawn(", "task::spawn(", "task::spawn_local("].iter().any(|call| line.contains(call)));
    let elsewhere: Vec<_> = sources()
        .iter()
        .filter(|source| spawning(source) && source.path != Path::new("daemon/supervisor.rs"))
        .map(|source| source.path.display().to_string())
        .collect();
    assert!(elsewhere.is_empty(), "only daemon/supervisor.rs begins tasks: {elsewhere:?}");
}

#[test]
fn keys_are_read_by_one_type() {
    // The crate's own would take `env:NAME` for the key.
    let elsewhere: Vec<_> = sources()
        .iter()
        .filter(|source| source.path != Path::new("util/secret.rs") && source.code().any(|line| line.contains("secrecy::")))
        .map(|source| source.path.display().to_string())
        .collect();
    assert!(elsewhere.is_empty(), "use util::secret instead of secrecy: {elsewhere:?}");
}

#[test]
fn nothing_is_left_for_later() {
    // Built here so that this file is no hit for a search.
    let words = [["TO", "DO"].concat(), ["FIX", "ME"].concat(), ["todo", "!("].concat(), ["unimplemented", "!("].concat()];
    let open: Vec<_> = sources()
        .iter()
        .filter(|source| words.iter().any(|word| source.text.contains(word.as_str())))
        .map(|source| source.path.display().to_string())
        .collect();
    assert!(open.is_empty(), "{open:?}");
}
